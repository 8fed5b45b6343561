"""A codec for the features of any bottleneck: range coding tables, and the shape of one example."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidpress.model.coding import range_coder
from vidpress.model.tables.banks import fit_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCodec:
    """Turns rounded features into byte strings and back, exactly, on any machine and without TensorFlow.

    Each channel, along the last axis, has its own distribution. All positions of a feature map share these.

    The tables may have several banks. A bank is a set of tables; each example uses the bank that makes its string
    shortest.

    Attributes:
      tables: The range coding tables of the channels.
      shape: The shape of one example's features: `(num_channels,)`, or `(height, width, num_channels)`.
      quantization_offset: float32[num_channels], which is subtracted before rounding and added after decoding
        (`quantize`, `dequantize`), as some models of tensorflow-compression need it; None means 0.
    """

    tables: RangeCodingTables
    shape: tuple[int, ...]
    quantization_offset: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or min(self.shape) < 1 or self.shape[-1] != self.tables.num_dims:
            raise ValueError(
                f"shape={self.shape} must be positive and end with {self.tables.num_dims}, the channels of the tables."
            )
        if self.quantization_offset is not None:
            offset = np.array(self.quantization_offset, np.float32).reshape(-1)
            if offset.shape != self.shape[-1:] or not np.isfinite(offset).all():
                raise ValueError(
                    f"quantization_offset must be {self.shape[-1]} finite numbers, one a channel, not of shape "
                    f"{np.shape(self.quantization_offset)}."
                )
            offset.flags.writeable = False
            object.__setattr__(self, "quantization_offset", offset)

    @classmethod
    def from_entropy_model(cls, entropy_model: Any, feature_shape: Sequence[int]) -> FeatureCodec:
        """Make a codec from a trained `tfc.ContinuousBatchedEntropyModel`. Each can read the other's strings.

        If you have only its arrays, use `FeatureCodec(RangeCodingTables.from_lookup(cdf, cdf_offset), shape,
        quantization_offset)`.

        Args:
          entropy_model: The entropy model, built with `compression=True`.
          feature_shape: The shape of the features in one string. All axes of its prior are one axis here, the last.

        Raises:
          ValueError: If the entropy model has no tables, or its strings do not hold features of this shape.
        """
        kind = type(entropy_model)
        if not any(base.__name__ == "ContinuousBatchedEntropyModel" for base in kind.__mro__):
            raise ValueError(
                f"entropy_model is a {kind.__name__}, and only a ContinuousBatchedEntropyModel's tables can be taken "
                "over. If you have its arrays, use RangeCodingTables.from_lookup(cdf, cdf_offset)."
            )
        if not entropy_model.compression:
            raise ValueError("entropy_model has no tables: build it from the trained prior with compression=True.")
        prior_shape, shape = tuple(map(int, entropy_model.prior_shape)), tuple(feature_shape)
        channels, rank = math.prod(prior_shape), entropy_model.coding_rank - len(prior_shape) + 1
        if len(shape) != rank or shape[-1] != channels:
            axes = ["..."] * (rank - 1) + [str(channels)]
            raise ValueError(
                f"feature_shape={shape} must be ({', '.join(axes)}{',' * (rank == 1)}), and features reshaped to that: "
                f"the entropy model makes one string of the last coding_rank={entropy_model.coding_rank} axes, and its "
                f"prior has shape {prior_shape}."
            )
        tables = RangeCodingTables.from_lookup(np.asarray(entropy_model.cdf), np.asarray(entropy_model.cdf_offset))
        offset = entropy_model.quantization_offset
        # An offset may be one number for all channels.
        return cls(tables, shape, None if offset is None else np.broadcast_to(offset, prior_shape).reshape(-1))

    @classmethod
    def fit(cls, z_hat: np.ndarray, *, num_banks: int = 1) -> FeatureCodec:
        """Fit a codec to features that are like those it will encode.

        Args:
          z_hat: Integers [n, ..., num_channels], n >= 1.
          num_banks: How many banks of tables to fit, a power of two from 1 to 256, and at most n.

        Raises:
          ValueError: If `z_hat` has another shape or type, or if that many banks cannot be fitted.
        """
        return cls(RangeCodingTables.fit(z_hat), np.shape(z_hat)[1:]).with_banks(z_hat, num_banks)

    def with_banks(self, z_hat: np.ndarray, num_banks: int) -> FeatureCodec:
        """Return the codec with banks of tables fitted to features `z_hat`, integers [n, *shape]."""
        return dataclasses.replace(self, tables=fit_banks(self.tables, z_hat, num_banks))

    @property
    def bank_bytes(self) -> int:
        """How many bytes of each string name its bank: 0 with one bank, 1 with more."""
        return int(self.tables.num_banks > 1)

    def quantize(self, z: np.ndarray) -> np.ndarray:
        """Round features to the integers that are coded, halves to even, after subtracting the offset if there is one.

        Args:
          z: float32[n, *shape].

        Returns:
          int32[n, *shape], `z_hat`.

        Raises:
          ValueError: If a feature is NaN or beyond int32.
        """
        z_hat = np.rint(
            np.asarray(z, np.float32) - (0 if self.quantization_offset is None else self.quantization_offset)
        )
        if not (np.abs(z_hat) < 2**31).all():  # nor is NaN
            raise ValueError("There are features that are NaN or beyond int32: did training diverge?")
        return z_hat.astype(np.int32)

    def dequantize(self, z_hat: np.ndarray) -> np.ndarray:
        """Turn integers back into features, float32[n, *shape], and add the offset if there is one."""
        z = np.asarray(z_hat).astype(np.float32)
        return z if self.quantization_offset is None else z + self.quantization_offset

    def compress(self, z_hat: np.ndarray) -> list[bytes]:
        """Encode features, each example by itself.

        Args:
          z_hat: Integers [n, *shape]. Whole numbers of a floating-point type are accepted too.

        Returns:
          n byte strings: one byte for the bank if there are several, and then the bytes of the range coder.

        Raises:
          ValueError: If the shape is wrong, or if a value is not a whole number or is too large.
        """
        z_hat = np.asarray(z_hat)
        if z_hat.shape[1:] != self.shape:
            raise ValueError(f"z_hat has shape {z_hat.shape}; this codec takes {('n', *self.shape)}.")
        encoded = range_coder.encode_cheapest(self.tables, z_hat)
        codes = encoded.strings()
        if not self.bank_bytes:
            return codes
        return [bytes([number]) + code for number, code in zip(encoded.bank.tolist(), codes, strict=True)]

    def decompress(self, codes: Sequence[bytes]) -> np.ndarray:
        """Decode what `compress` returned.

        Returns:
          int32[n, *shape], `z_hat`.

        Raises:
          vidpress.model.coding.range_coder.DamagedCodeError: If strings are found to be damaged. Much damage cannot be
            found: store the strings with a checksum.
        """
        damaged = [row for row, code in enumerate(codes) if self.bank_bytes and not self._has_bank(code)]
        if damaged:
            raise range_coder.DamagedCodeError(damaged, len(codes))
        bank = self.banks(codes) if self.bank_bytes else None
        strings = [code[self.bank_bytes :] for code in codes]
        return range_coder.decompress(self.tables, strings, self.shape[:-1], bank)

    def banks(self, codes: Sequence[bytes]) -> np.ndarray:
        """Return the bank of each string, uint8[n]."""
        return np.array([code[0] if self.bank_bytes else 0 for code in codes], np.uint8)

    def _has_bank(self, code: bytes) -> bool:
        return bool(code) and code[0] < self.tables.num_banks and bool(self.tables.has_bank[code[0]])

    def num_bytes(self, codes: Sequence[bytes]) -> float:
        """Return the size of some strings, where the byte that names the bank counts only the bits that it needs.

        The `bank` column of a data set is counted in the same way.
        """
        bank_bits = math.log2(self.tables.num_banks)
        return sum(map(len, codes)) + len(codes) * (bank_bits / 8 - self.bank_bytes)
