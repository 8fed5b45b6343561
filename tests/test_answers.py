"""The answers to a task, as something to store."""

import numpy as np
import pytest

from vidpress.model import metrics
from vidpress.model.coding import range_coder
from vidpress.pipeline.evaluation.rivals import answers

RNG = np.random.default_rng(0)
NUM_CLASSES = 50
HEAD = (RNG.normal(size=(8, NUM_CLASSES)).astype(np.float32), RNG.normal(-2, 1, NUM_CLASSES).astype(np.float32))
Z = RNG.gamma(1, 1, (600, 8)).astype(np.float32)
SCORES = Z @ HEAD[0] + HEAD[1]


@pytest.mark.parametrize("num_best", [1, 5, 50])
def test_the_best_classes_and_their_scores_are_kept(num_best):
    codec = answers.fit_answers(Z, HEAD, num_best)
    restored = codec.decode(codec.encode(Z))
    assert (restored.shape, restored.dtype) == (SCORES.shape, np.float32)
    best = metrics.top_classes(SCORES, num_best)
    kept = np.zeros(SCORES.shape, bool)
    np.put_along_axis(kept, best, True, axis=1)
    np.testing.assert_array_equal(restored > 0, kept)
    # A score is off by half a level at most, as they count from below the lowest one.
    assert np.abs(restored - (SCORES - codec.low) - codec.step / 2)[kept].max() <= codec.step / 2 * 1.01
    assert len(np.unique(restored[kept])) <= 32


def test_bytes_are_those_of_strings_that_can_be_decoded():
    codec = answers.fit_answers(Z, HEAD, 5)
    codes = codec.encode(Z)
    encoded = range_coder.encode_cheapest(codec.tables, codes.astype(np.int32))
    assert codec.num_bytes(codes) == len(encoded.data) + len(Z) * np.log2(codec.tables.num_banks) / 8
    decoded = range_coder.decompress(codec.tables, encoded.strings(), bank=encoded.bank)
    np.testing.assert_array_equal(decoded, codes)
    assert codec.tables.num_banks == 16  # of 32 videos or more each


def test_other_videos_have_scores_beyond_the_levels():
    codec = answers.fit_answers(Z, HEAD, 5)
    restored = codec.decode(codec.encode(np.concatenate([Z * 100, Z * 0])))
    assert restored.max() == np.float32(32 * codec.step)
    assert (np.count_nonzero(restored, axis=1) == 5).all()
    assert codec.num_bytes(codec.encode(Z[:1])) > 0


def test_answers_need_a_head():
    with pytest.raises(ValueError, match="need the head"):
        answers.fit_answers(Z, None, 5)
