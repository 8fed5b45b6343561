"""The size of deflated rows against zlib's."""

import zlib

import numpy as np
import pytest

from vidpress.model.deflate import deflated_bytes


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_each_row_is_deflated_by_itself(dtype):
    rows = np.random.default_rng(0).integers(0, 4, (30, 7, 3)).astype(dtype)
    assert deflated_bytes(rows) == sum(len(zlib.compress(rows[i].tobytes(), 9)) for i in range(30))
    assert deflated_bytes(np.asfortranarray(rows)) == deflated_bytes(rows)
    assert deflated_bytes(rows[:0]) == 0
