"""Range coding tables: how probable each value of each dimension of `z_hat` is, in integers.

They are integers, so that the coder's intervals are the same on every machine. The tables contain what
tensorflow-compression's `ContinuousBatchedEntropyModel` has in `cdf` and `cdf_offset`, and can also be fitted to data.

There may be banks of them. A cooking video and a car video switch on different dimensions. With one bank for each kind
of video, of which the encoder uses the cheapest, codes are shorter than with any single tables. A bank differs from the
shared tables by how much more or less likely each dimension is to be switched on. `banks` fits and chooses them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from vidpress.model.tables import packing
from vidpress.model.tables.coder_arrays import CoderArrays, lay_out, occurring_tilts
from vidpress.model.tables.fitting import fit_widths
from vidpress.model.tables.limits import MAX_BANK_ENTRIES, MAX_BANKS, MAX_DIMS, MAX_ENTRIES, MAX_OFFSET
from vidpress.model.tables.symbol_counts import SymbolCounts, count_symbols
from vidpress.model.tables.widths import (
    MAX_TILT,
    cdf_of_widths,
    check_dims,
    check_precision,
    likeliest_interval,
    round_one_by_one,
    widths_of_cdf,
)

# On sparse data, 10 costs 0.3 % and 12 0.06 % more bits than 16: no interval is narrower than 2^-precision, which adds
# up over the dimensions that are nearly always 0. The coder's own rounding costs 0.01 % more at 16 than at 14.
DEFAULT_PRECISION = 16

# Stands for all tilts of a bank that was left out (`RangeCodingTables.with_banks`).
_LEFT_OUT = -128


@dataclasses.dataclass(frozen=True, eq=False)
class RangeCodingTables:
    """A cumulative distribution of integers for each dimension.

    That of dimension d is `cdf[cdf_start[d]:cdf_start[d + 1]]`: 0, ..., 2^precision, strictly increasing. Its i-th
    interval stands for the value `cdf_offset[d] + i`; the last one is the escape, for all values outside the table.

    Attributes:
      cdf: int32[total], the distributions one after the other.
      cdf_start: int32[num_dims + 1], where each distribution begins.
      cdf_offset: int32[num_dims], the value of each distribution's first interval.
      precision: Probabilities are multiples of 2^-precision; 1 to 16.
      bank_tilt: int8[num_banks, num_dims]: in bank b, the odds that dimension d has another than its likeliest value
        are those of the tables times 2^(bank_tilt[b, d] / 2). A single column applies to all dimensions. By default
        there is one bank, the unchanged tables.
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
        check_precision(self.precision)
        object.__setattr__(self, "precision", int(self.precision))
        start, cdf = self.cdf_start, self.cdf
        if len(start) != len(self.cdf_offset) + 1 or len(start) < 2:
            raise ValueError(
                f"cdf_start has {len(start)} and cdf_offset {len(self.cdf_offset)} entries: they must have "
                "num_dims + 1 and num_dims, of at least 1."
            )
        if self.num_dims > MAX_DIMS or len(cdf) > MAX_ENTRIES:
            raise ValueError(
                f"There are {self.num_dims:,} dimensions with {len(cdf):,} entries in all: at most {MAX_DIMS:,} and "
                f"{MAX_ENTRIES:,} are possible. Use a narrower bottleneck; or did training diverge?"
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
            np.abs(self.cdf_offset.astype(np.int64)) <= MAX_OFFSET,
            self.cdf_offset,
            f"cdf_offset {{}}, beyond {MAX_OFFSET} either way: shift the values",
        )
        self._check_banks()

    def __reduce__(self) -> tuple:
        """Keep arrays read-only when they are unpickled: for writable ones, loops would be compiled again."""
        return RangeCodingTables, (self.cdf, self.cdf_start, self.cdf_offset, self.precision, self.bank_tilt)

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
        num_entries = int((occurring_tilts(self._tilt).sum(axis=1) * np.diff(self.cdf_start)).sum())
        if num_entries > MAX_BANK_ENTRIES:
            raise ValueError(
                f"The banks' distributions have {num_entries:,} entries in all: at most {MAX_BANK_ENTRIES:,} are "
                "possible. Use fewer banks."
            )

    @property
    def num_dims(self) -> int:
        """Dimensions of `z_hat`."""
        return len(self.cdf_offset)

    @property
    def num_banks(self) -> int:
        """How many banks there are, including those that were left out."""
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
        if other is self:
            return self
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
    def _tilt(self) -> np.ndarray:
        """int8[num_banks, num_dims], the tilts; banks left out have the shared tables' distributions."""
        return np.where(self.has_bank[:, None], self.bank_tilt, 0).astype(np.int8)

    @functools.cached_property
    def coder_arrays(self) -> CoderArrays:
        """The tables as the range coder's loops read them."""
        return lay_out(self.cdf, self.cdf_start, self.cdf_offset, self.precision, self._tilt)

    @functools.cached_property
    def likeliest_value(self) -> np.ndarray:
        """int32[num_dims], the value of each dimension's widest interval; if several are equally wide, the lowest."""
        widths, start = widths_of_cdf(self.cdf, self.cdf_start)
        return (likeliest_interval(widths, start) - start[:-1] + self.cdf_offset).astype(np.int32)

    @property
    def lookup(self) -> np.ndarray:
        """The tables in tensorflow-compression's layout, int32[total + num_dims].

        Before each distribution there is -precision; the minus sign says that its last interval is the escape.
        """
        return np.insert(self.cdf, self.cdf_start[:-1], -self.precision)

    @classmethod
    def from_lookup(cls, lookup: np.ndarray, cdf_offset: np.ndarray) -> RangeCodingTables:
        """Make tables from those of a `ContinuousBatchedEntropyModel`.

        Args:
          lookup: int32[total + num_dims], its `cdf`.
          cdf_offset: int32[num_dims], its `cdf_offset`.

        Raises:
          ValueError: If these are not such tables, or have no escape symbol, or have several precisions.
        """
        lookup = np.asarray(lookup)
        if lookup.ndim != 1 or not len(lookup) or lookup[0] >= 0:
            raise ValueError(
                "lookup must be a vector that begins with -precision: tables without escapes are not supported. Let "
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
          pmf: For each dimension the probabilities of the values `cdf_offset`, `cdf_offset + 1`, and so on. The
            remainder to 1 is that of the escape.
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

        A table reaches from the most frequent value so far that the escapes of the values in it would cost more than
        their intervals do. Values in it that were not seen, and the escape, get a pseudo-count.

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

    def check_bank(self, bank: np.ndarray | None, num_rows: int) -> np.ndarray:
        """Return each row's bank, uint8[num_rows].

        Raises:
          ValueError: If there is not one bank for each row, if there is no such bank, or if none are given although the
            tables have several.
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
                f"Row {row} has bank {bank[row]}, which these tables do not have. Are they another model's?"
            )
        return bank.astype(np.uint8)

    def to_bytes(self) -> bytes:
        """Return the tables as few bytes, less than one a value if they were fitted; `from_bytes` reads them."""
        arrays = packing.PackedArrays(self.cdf, self.cdf_start, self.cdf_offset, self.precision, self.bank_tilt)
        return packing.pack(arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> RangeCodingTables:
        """Read what `to_bytes` wrote.

        Raises:
          ValueError: If these are not tables, are damaged or too large, or are of a version that is not known.
        """
        arrays = packing.unpack(data)
        try:
            return cls(*arrays)
        except ValueError as error:
            raise packing.damaged(error) from error
