import dataclasses

import hypothesis
import numpy as np
import pytest
from random_tables import seeds

from vidpress.model.tables import coder_arrays
from vidpress.model.tables.range_coding_tables import RangeCodingTables


@hypothesis.given(seeds)
def test_banks_share_distributions_and_are_tilted_one_by_one(rng):
    """However many distributions are computed at a time."""
    tables = RangeCodingTables.fit(rng.geometric(0.7, (50, 20)) - 1)
    tilt = rng.integers(-24, 25, (5, 20)).astype(np.int8)
    tilt[2] = -128
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder_arrays, "_ENTRIES_CHUNK", int(rng.integers(1, 30)))
        found = dataclasses.replace(tables, bank_tilt=tilt).coder_arrays
    for bank in range(5):
        alone = dataclasses.replace(tables, bank_tilt=np.where(tilt[bank] == -128, 0, tilt[bank])[None])
        expected = alone.coder_arrays
        np.testing.assert_array_equal(found.first_uppers[bank], expected.first_uppers[0])
        for dim in range(20):
            cdf, other = (
                arrays.cdf[arrays.start[number, dim] :][: arrays.escape[dim] + 2]
                for arrays, number in ((found, bank), (expected, 0))
            )
            np.testing.assert_array_equal(cdf, other)
