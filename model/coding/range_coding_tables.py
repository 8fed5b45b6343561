"""Range coding tables: how probable each value of each dimension of `z_hat` is, in integers.

Integers, so that every machine narrows the coder's interval alike. The tables hold what tensorflow-compression's
`ContinuousBatchedEntropyModel` holds in `cdf` and `cdf_offset`, and can be fitted to data anew.

There may be banks of them. A cooking video and a car video switch on different dimensions; with one bank for each kind
of video, of which an encoder takes the cheapest, codes are shorter than with any single tables. A bank differs from the
shared tables by how much likelier or less likely each dimension is to be switched on. `table_banks` fits and chooses.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import lzma
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from vidpress.model.coding import table_bytes
from vidpress.model.coding.symbol_counts import SymbolCounts, count_symbols
from vidpress.model.coding.table_fitting import fit_widths
from vidpress.model.coding.table_widths import (
    MAX_TILT,
    cdf_of_widths,
    check_dims,
    likeliest_interval,
    round_one_by_one,
    tilt_widths,
)

# An escaped value is coded by its distance from the table, which has at most this many bits: tensorflow-compression's
# loop for the Elias gamma code (`OverflowEncode` in cc/kernels/range_coder_kernels.cc) does not end at 2^30.
MAX_ESCAPE_BITS = 30
# Any distance then leads to an int32.
_MAX_OFFSET = 2**29

# Where these intervals stand in the range coder's `cdf`, counted from its end.
BIT_INTERVALS = 5
WHOLE_INTERVAL = 2

# On sparse data, 10 costs 0.3 % and 12 0.06 % more bits than 16: no interval is narrower than 2^-precision, which adds
# up over the dimensions that are nearly always 0. The coder's own rounding costs 0.01 % more at 16 than at 14.
DEFAULT_PRECISION = 16

# A row group of 4096 videos is decoded at once, to 128 MiB with so many dimensions.
MAX_DIMS = 2**13
MAX_BANKS = 256
# Of all dimensions' distributions together. Tables fitted to 2000 dimensions of YouTube-8M have some 20,000.
MAX_ENTRIES = 2**21
# Of the distributions of all banks together, where one is counted once however many banks share it. With 256 banks, the
# tables of 2000 dimensions of YouTube-8M have some 500,000.
MAX_BANK_ENTRIES = 2**24

_MAGIC = b"VPRT"
_FORMAT_VERSION = 2
_HEADER = struct.Struct("<4sBI")  # magic, format version, CRC-32 of the rest
_SIZES = {1: struct.Struct("<BI"), 2: struct.Struct("<BIH")}  # precision, dimensions, and since version 2 banks
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 20, "lc": 0, "pb": 0}]

# Stands for all tilts of a bank that was left out (`RangeCodingTables.with_banks`).
_LEFT_OUT = -128

_CHUNK = 1 << 20  # symbols worked on at a time
_ENTRIES_CHUNK = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False)
class RangeCodingTables:
    """A cumulative distribution of integers for each dimension.

    Dimension d's is `cdf[cdf_start[d]:cdf_start[d + 1]]`: 0, ..., 2^precision, strictly increasing. Its i-th interval
    stands for the value `cdf_offset[d] + i`; the last one is the escape, for all values outside.

    Attributes:
      cdf: int32[total], the distributions one after the other.
      cdf_start: int32[num_dims + 1], where each begins.
      cdf_offset: int32[num_dims], the value of each first interval.
      precision: Probabilities are multiples of 2^-precision; 1 to 16.
      bank_tilt: int8[num_banks, num_dims]: in bank b the odds that dimension d takes another than its likeliest value
        are those of the tables times 2^(bank_tilt[b, d] / 2). A single column is taken for all dimensions. By default
        there is one bank, the tables as they are.
    """

    cdf: np.ndarray
    cdf_start: np.ndarray
    cdf_offset: np.ndarray
    precision: int
    bank_tilt: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((1, 1), np.int8))

    def __post_init__(self) -> None:
        for name in ("cdf", "cdf_start", "cdf_offset"):
            array = np.asarray(getattr(self, name))
            if array.dtype.kind not in "iu" or array.ndim != 1:
                raise ValueError(f"{name} must be a vector of integers, not {array.dtype}{list(array.shape)}.")
            copy = array.astype(np.int32)
            if (copy != array).any():
                raise ValueError(f"{name} has values beyond int32.")
            copy.flags.writeable = False
            object.__setattr__(self, name, copy)
        if isinstance(self.precision, bool) or not isinstance(self.precision, int | np.integer):
            raise ValueError(f"precision must be an integer, not {self.precision!r}.")
        if not 1 <= self.precision <= 16:
            raise ValueError(f"precision is {self.precision}: the range coder takes 1 to 16.")
        object.__setattr__(self, "precision", int(self.precision))
        start, cdf = self.cdf_start, self.cdf
        if len(start) != len(self.cdf_offset) + 1 or len(start) < 2:
            raise ValueError(
                f"cdf_start has {len(start)} and cdf_offset {len(self.cdf_offset)} entries: they must have "
                "num_dims + 1 and num_dims, of at least 1."
            )
        if self.num_dims > MAX_DIMS or len(cdf) > MAX_ENTRIES:
            raise ValueError(
                f"There are {self.num_dims:,} dimensions with {len(cdf):,} entries in all: {MAX_DIMS:,} and "
                f"{MAX_ENTRIES:,} are possible. Take a narrower bottleneck; or did training diverge?"
            )
        if start[0] != 0 or start[-1] != len(cdf):
            raise ValueError(
                f"cdf_start goes from {start[0]} to {start[-1]}: it must go from 0 to {len(cdf)}, cdf's end."
            )
        check_dims(
            np.diff(start.astype(np.int64)) >= 3, start[1:] - start[:-1], "a cdf of {} entries; it needs at least 3"
        )
        check_dims(cdf[start[:-1]] == 0, cdf[start[:-1]], "a cdf that starts with {} instead of 0")
        last = cdf[start[1:] - 1]
        check_dims(last == 1 << self.precision, last, f"a cdf that ends with {{}} instead of {1 << self.precision}")
        rises = np.diff(cdf.astype(np.int64), prepend=0) > 0
        rises[start[:-1]] = True
        fewest = np.logical_and.reduceat(rises, start[:-1])
        check_dims(fewest, fewest, "a cdf that does not increase strictly: give every interval at least 1")
        check_dims(
            np.abs(self.cdf_offset.astype(np.int64)) <= _MAX_OFFSET,
            self.cdf_offset,
            f"cdf_offset {{}}, beyond {_MAX_OFFSET} either way: shift the values",
        )
        self._check_banks()

    def _check_banks(self) -> None:
        tilt = np.array(self.bank_tilt)
        if tilt.dtype != np.int8 or tilt.ndim != 2 or tilt.shape[1] not in (1, self.num_dims):
            raise ValueError(f"bank_tilt must be int8[num_banks, {self.num_dims}], not {tilt.dtype}{list(tilt.shape)}.")
        if not 1 <= len(tilt) <= MAX_BANKS:
            raise ValueError(f"There are {len(tilt)} banks: 1 to {MAX_BANKS} are possible.")
        tilt = np.broadcast_to(tilt, (len(tilt), self.num_dims)).copy()
        left_out = (tilt == _LEFT_OUT).all(axis=1)
        beyond = (tilt > MAX_TILT) | (tilt < -MAX_TILT)
        if beyond[~left_out].any():
            raise ValueError(f"bank_tilt has values beyond {MAX_TILT} either way.")
        tilt.flags.writeable = False
        object.__setattr__(self, "bank_tilt", tilt)
        num_entries = int((self._occurs.sum(axis=1) * np.diff(self.cdf_start)).sum())
        if num_entries > MAX_BANK_ENTRIES:
            raise ValueError(
                f"The banks' distributions have {num_entries:,} entries in all: {MAX_BANK_ENTRIES:,} are possible. "
                "Take fewer banks."
            )

    @property
    def num_dims(self) -> int:
        """Dimensions of `z_hat`."""
        return len(self.cdf_offset)

    @property
    def num_banks(self) -> int:
        """How many banks there are, those left out included."""
        return len(self.bank_tilt)

    @functools.cached_property
    def has_bank(self) -> np.ndarray:
        """bool[num_banks], false for banks that were left out."""
        return ~(self.bank_tilt == _LEFT_OUT).all(axis=1)

    @property
    def shared(self) -> RangeCodingTables:
        """The tables themselves, as the only bank."""
        return dataclasses.replace(self, bank_tilt=np.zeros((1, 1), np.int8))

    def with_banks(self, banks: np.ndarray) -> RangeCodingTables:
        """Return the tables with some of the banks; the others keep their numbers, but are left out.

        Args:
          banks: Integers, the banks to keep.
        """
        tilt = np.full_like(self.bank_tilt, _LEFT_OUT)
        tilt[banks] = self.bank_tilt[banks]
        return dataclasses.replace(self, bank_tilt=tilt)

    def union(self, other: RangeCodingTables) -> RangeCodingTables:
        """Return the tables with the banks of both.

        Raises:
          ValueError: If they are not parts of the same tables.
        """
        same = self.num_banks == other.num_banks and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("cdf", "cdf_start", "cdf_offset", "precision")
        )
        both = self.has_bank & other.has_bank if same else []
        if not (same and np.array_equal(self.bank_tilt[both], other.bank_tilt[both])):
            raise ValueError("These are not parts of the same range coding tables.")
        if (other.has_bank <= self.has_bank).all():
            return self
        return dataclasses.replace(self, bank_tilt=np.where(self.has_bank[:, None], self.bank_tilt, other.bank_tilt))

    @property
    def _widths(self) -> tuple[np.ndarray, np.ndarray]:
        """The widths of the shared tables' intervals, `(int64[total - num_dims], start int64[num_dims + 1])`."""
        # Without what lies between two distributions.
        widths = np.delete(np.diff(self.cdf), self.cdf_start[1:-1] - 1)
        return widths.astype(np.int64), self.cdf_start - np.arange(self.num_dims + 1)

    @property
    def _tilt_index(self) -> np.ndarray:
        """int8[num_banks, num_dims], the tilts counted from 0; banks left out have the shared tables' distributions."""
        return np.where(self.has_bank[:, None], self.bank_tilt, 0).astype(np.int8) + np.int8(MAX_TILT)

    @functools.cached_property
    def _occurs(self) -> np.ndarray:
        """bool[num_dims, 2 * MAX_TILT + 1], which tilts a dimension has in some bank."""
        occurs = np.zeros((self.num_dims, 2 * MAX_TILT + 1), bool)
        occurs[np.arange(self.num_dims), self._tilt_index] = True
        return occurs

    @functools.cached_property
    def coder_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The tables as the range coder's loops read them.

        `(cdf uint32[total + 5]; where each distribution begins int32[num_banks, num_dims]; of each first four
        intervals the upper ends, less 1, in 16 bits each from the lowest on, uint64[num_banks, num_dims]; the index of
        each last interval, the escape, int32[num_dims]; cdf_offset int32[num_dims])`.

        Banks share the distributions in which they agree. Behind the distributions `cdf` has, `BIT_INTERVALS` before
        its end, one for bits, and then the whole interval, `WHOLE_INTERVAL` before its end. A distribution of fewer
        than four intervals has empty ones at its end.
        """
        dim, tilt = np.nonzero(self._occurs)
        sizes = np.diff(self.cdf_start)
        start = np.append(0, np.cumsum(sizes[dim], dtype=np.int64))
        whole = 1 << self.precision
        cdf = np.empty(start[-1] + BIT_INTERVALS, np.uint32)
        cdf[-BIT_INTERVALS:] = 0, whole // 2, whole, 0, whole
        shared, shared_start = self._widths
        chunks = np.unique(np.searchsorted(start, np.arange(0, start[-1], _ENTRIES_CHUNK)))
        for first, last in itertools.pairwise([*chunks, len(dim)]):
            dims = dim[first:last]
            widths_start = np.append(0, np.cumsum(sizes[dims] - 1))
            index = np.arange(widths_start[-1])
            index += np.repeat(shared_start[:-1][dims] - widths_start[:-1], sizes[dims] - 1)
            widths = tilt_widths(shared[index], widths_start, tilt[first:last] - MAX_TILT, self.precision)
            cdf[start[first] : start[last]] = cdf_of_widths(widths, widths_start, self.precision)
        escape = sizes - 2
        first_uppers = np.zeros(len(dim), np.uint64)
        for interval in range(4):
            upper = cdf[start[:-1] + np.minimum(interval, escape[dim]) + 1]
            first_uppers |= (upper - 1).astype(np.uint64) << np.uint64(16 * interval)
        # Distributions are numbered by dimension, then by tilt.
        number = np.cumsum(self._occurs, dtype=np.int32).reshape(self._occurs.shape) - 1
        number = number[np.arange(self.num_dims), self._tilt_index]
        return cdf, start.astype(np.int32)[number], first_uppers[number], escape, self.cdf_offset

    @functools.cached_property
    def likeliest_value(self) -> np.ndarray:
        """int32[num_dims], the value of each dimension's widest interval, of equally wide ones the least."""
        widths, start = self._widths
        return (likeliest_interval(widths, start) - start[:-1] + self.cdf_offset).astype(np.int32)

    @property
    def lookup(self) -> np.ndarray:
        """The tables in tensorflow-compression's layout, int32[total + num_dims].

        Before each distribution stands -precision; the minus sign says that its last interval is the escape.
        """
        return np.insert(self.cdf, self.cdf_start[:-1], -self.precision)

    @classmethod
    def from_lookup(cls, lookup: np.ndarray, cdf_offset: np.ndarray) -> RangeCodingTables:
        """Take the tables of a `ContinuousBatchedEntropyModel`.

        Args:
          lookup: int32[total + num_dims], its `cdf`.
          cdf_offset: int32[num_dims], its `cdf_offset`.

        Raises:
          ValueError: If these are not such tables, or have no escape symbol or no single precision.
        """
        lookup = np.asarray(lookup)
        if lookup.ndim != 1 or not len(lookup) or lookup[0] >= 0:
            raise ValueError(
                "lookup must be a vector that begins with -precision: tables without escapes are not taken. Let "
                "ContinuousBatchedEntropyModel build them."
            )
        begin = np.flatnonzero(lookup < 0)
        if (lookup[begin] != lookup[0]).any():
            raise ValueError(f"lookup mixes the precisions {np.unique(-lookup[begin])}: build all tables with one.")
        start = np.append(begin, len(lookup)) - np.arange(len(begin) + 1)
        return cls(np.delete(lookup, begin), start, np.asarray(cdf_offset).reshape(-1), -int(lookup[0]))

    @classmethod
    def from_pmf(
        cls, pmf: Sequence[np.ndarray], cdf_offset: np.ndarray, precision: int = DEFAULT_PRECISION
    ) -> RangeCodingTables:
        """Round probabilities to multiples of 2^-precision, as tensorflow-compression does, to the same integers.

        Args:
          pmf: For each dimension the probabilities of the values `cdf_offset`, `cdf_offset + 1`, and so on. What they
            lack to 1 is the escape's.
          cdf_offset: int32[num_dims].
          precision: 1 to 16.

        Raises:
          ValueError: If a probability is negative or not finite, or there are more values than intervals.
        """
        weights = [np.append(p, max(0.0, 1.0 - float(np.sum(p)))).astype(np.float32) for p in pmf]
        for dim, weight in enumerate(weights):
            if not (np.isfinite(weight).all() and (weight >= 0).all()):
                raise ValueError(f"pmf of dimension {dim} has a probability that is negative or not finite.")
        start = np.cumsum([0, *(len(weight) for weight in weights)])
        return cls._from_widths(
            round_one_by_one(np.concatenate(weights), start, precision), start, np.asarray(cdf_offset), precision
        )

    @classmethod
    def fit(cls, z_hat: np.ndarray | SymbolCounts, precision: int = DEFAULT_PRECISION) -> RangeCodingTables:
        """Fit tables to data.

        A table reaches from the most frequent value as far as the values' escapes would cost more than their
        intervals do; unseen values within, and the escape, get a share of a pseudo-count.

        Args:
          z_hat: Integers [n, ..., num_dims], n >= 1, or counts of them.
          precision: 1 to 16.

        Raises:
          ValueError: If there are no data, or a dimension's most frequent value is beyond 2^29.
        """
        counts = z_hat if isinstance(z_hat, SymbolCounts) else count_symbols(z_hat)
        widths, start, cdf_offset = fit_widths(counts, precision)
        return cls._from_widths(widths, start, cdf_offset, precision)

    @classmethod
    def _from_widths(
        cls, widths: np.ndarray, start: np.ndarray, cdf_offset: np.ndarray, precision: int
    ) -> RangeCodingTables:
        return cls(cdf_of_widths(widths, start, precision), start + np.arange(len(start)), cdf_offset, precision)

    def bits(self, z_hat: np.ndarray, bank: np.ndarray | None = None) -> np.ndarray:
        """Return each row's information under the tables, escapes included.

        Args:
          z_hat: Integers [n, ..., num_dims].
          bank: uint8[n], each row's bank; None if there is only one.

        Returns:
          float64[n], bits.

        Raises:
          ValueError: If `z_hat` has another shape or type.
        """
        positions = [chunk.sum(axis=1) for chunk in self._symbol_bits(z_hat, bank)]
        shape = (len(z_hat), int(np.prod(np.shape(z_hat)[1:-1], dtype=np.int64)))
        return np.concatenate([np.empty(0), *positions]).reshape(shape).sum(axis=1)

    def bits_by_dim(self, z_hat: np.ndarray, bank: np.ndarray | None = None) -> np.ndarray:
        """Return each dimension's mean information under the tables, escapes included.

        Args:
          z_hat: Integers [n, ..., num_dims], n >= 1.
          bank: uint8[n], each row's bank; None if there is only one.

        Returns:
          float64[num_dims], bits a symbol.

        Raises:
          ValueError: If `z_hat` has another shape or type, or is empty.
        """
        total = np.zeros(self.num_dims)
        for chunk in self._symbol_bits(z_hat, bank):
            total += chunk.sum(axis=0)
        if not np.size(z_hat):
            raise ValueError("An empty z_hat has no mean: give at least one row.")
        return total * (self.num_dims / np.size(z_hat))

    def check_bank(self, bank: np.ndarray | None, num_rows: int) -> np.ndarray:
        """Return each row's bank, uint8[num_rows].

        Raises:
          ValueError: If these are not one for each row, or there is no such bank, or none are given where there are
            several.
        """
        if bank is None:
            if self.num_banks > 1 and num_rows:
                raise ValueError(f"These tables have {self.num_banks} banks: say which one each row has.")
            return np.zeros(num_rows, np.uint8)
        bank = np.asarray(bank)
        if bank.shape != (num_rows,) or bank.dtype.kind not in "iu":
            raise ValueError(f"bank is {bank.dtype}{list(bank.shape)}; {num_rows} rows take integers [{num_rows}].")
        known = (bank >= 0) & (bank < self.num_banks)
        known[known] = self.has_bank[bank[known]]
        if not known.all():
            row = int(np.argmin(known))
            raise ValueError(
                f"Row {row} has bank {bank[row]}, which is none of these tables'. Are they another model's?"
            )
        return bank.astype(np.uint8)

    def _symbol_bits(self, z_hat: np.ndarray, bank: np.ndarray | None) -> Iterator[np.ndarray]:
        """Yield the bits of the symbols in chunks float64[some positions, num_dims]."""
        z_hat = np.asarray(z_hat)
        if z_hat.ndim < 2 or z_hat.shape[-1] != self.num_dims or z_hat.dtype.kind not in "iu":
            raise ValueError(
                f"z_hat is {z_hat.dtype}{list(z_hat.shape)}; these tables take integers [n, ..., {self.num_dims}]."
            )
        bank = self.check_bank(bank, len(z_hat))
        rows = z_hat.reshape(-1, self.num_dims)
        bank = np.repeat(bank, len(rows) // max(len(z_hat), 1))
        cdf, start, _, escape, _ = self.coder_arrays
        widths = np.diff(cdf.astype(np.int64), append=0)  # those between two distributions are not used
        interval_bits = self.precision - np.log2(np.maximum(widths, 1))
        step = max(1, _CHUNK // self.num_dims)
        for first in range(0, len(rows), step):
            index = rows[first : first + step].astype(np.int64) - self.cdf_offset
            escaped = (index < 0) | (index >= escape)
            bits = interval_bits[start[bank[first : first + step]] + np.where(escaped, escape, index)]
            if escaped.any():
                index = index[escaped]
                above = np.broadcast_to(escape, escaped.shape)[escaped]
                distance = np.where(index < 0, -index, index - above + 1)
                # The Elias gamma code takes 2 floor(log2(distance)) + 1 bits, the sign 1.
                bits[escaped] += 2 * (np.frexp(distance.astype(np.float64))[1] - 1) + 2
            yield bits

    def to_bytes(self) -> bytes:
        """Return the tables as few bytes, less than one a value if they were fitted; `from_bytes` reads them."""
        body = table_bytes.pack(self.cdf, self.cdf_start, self.cdf_offset) + self.bank_tilt.tobytes()
        rest = _SIZES[_FORMAT_VERSION].pack(self.precision, self.num_dims, self.num_banks)
        rest += lzma.compress(body, format=lzma.FORMAT_RAW, filters=_LZMA)
        return _HEADER.pack(_MAGIC, _FORMAT_VERSION, zlib.crc32(rest)) + rest

    @classmethod
    def from_bytes(cls, data: bytes) -> RangeCodingTables:
        """Read what `to_bytes` wrote.

        Raises:
          ValueError: If these are not tables, are damaged or too large, or are of a version that is not known.
        """
        if len(data) < _HEADER.size + 5 or data[:4] != _MAGIC:
            raise ValueError(f"These {len(data)} bytes are not range coding tables.")
        _, version, checksum = _HEADER.unpack_from(data)
        if version not in _SIZES:
            raise ValueError(
                f"The range coding tables have format version {version}; this vidpress reads {list(_SIZES)}: "
                "install the version that wrote them, or a later one."
            )
        rest = data[_HEADER.size :]
        if zlib.crc32(rest) != checksum:
            raise ValueError("The range coding tables are damaged: they do not fit their checksum. Fetch them again.")
        try:
            precision, num_dims, *banks = _SIZES[version].unpack_from(rest)
            num_banks = banks[0] if banks else 1
            if not (1 <= precision <= 16 and 1 <= num_dims <= MAX_DIMS and 1 <= num_banks <= MAX_BANKS):
                raise ValueError(f"{num_banks:,} banks of {num_dims:,} dimensions with precision {precision}")
            num_tilts = num_banks * num_dims if banks else 0
            most = table_bytes.num_bytes(MAX_ENTRIES, num_dims) + num_tilts
            body = _decompress(rest[_SIZES[version].size :], most)
            numbers, tilts = body[: len(body) - num_tilts], body[len(body) - num_tilts :]
            arrays = table_bytes.unpack(numbers, precision, num_dims)
            tilt = np.frombuffer(tilts, np.int8).reshape(num_banks, num_dims) if banks else np.zeros((1, 1), np.int8)
            return cls(*arrays, precision, tilt)
        except (struct.error, lzma.LZMAError, IndexError, ValueError) as error:
            raise ValueError(f"The range coding tables are damaged: {error}") from error


def _decompress(data: bytes, most: int) -> bytes:
    """Return what LZMA unpacks to; a few bytes can claim gigabytes."""
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA)
    body = decompressor.decompress(data, max_length=most + 1)
    if len(body) > most:
        raise ValueError(f"they unpack to more than {most:,} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("they do not end where their bytes do")
    return body
