"""Which loops the range coder runs: row by row or, if the processor has registers for them, in lanes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from vidpress.model.coding import lane_decoder, lane_encoder, row_decoder, row_encoder
from vidpress.model.compiled import compiles_for


class CoderLoops(NamedTuple):
    """The loops of `range_coder`. They release the GIL, so that batches can run side by side in threads.

    Attributes:
      encode_rows: Takes `(z_hat, bank, tables, precision)`, and returns data, offsets, and the place of a value that
        cannot be coded, or -1, -1.
      decode_rows: Takes `(data, offsets, bank, tables, precision, z_hat, damaged)`, and writes the last two.
    """

    encode_rows: Any
    decode_rows: Any


# Each is compiled when it is first called. All take arguments of the same types.
LANES = CoderLoops(lane_encoder.encode_rows, lane_decoder.decode_rows)
ROW_BY_ROW = CoderLoops(row_encoder.encode_rows, row_decoder.decode_rows)


@functools.cache
def chosen() -> CoderLoops:
    """Return the loops that are faster on the processor that Numba compiles for, by `benchmarks/lanes.py`.

    Both write and read the same codes.
    """
    return LANES if compiles_for("avx512vl") else ROW_BY_ROW
