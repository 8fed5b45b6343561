"""The answers to a task: of each video the best classes and their scores, coded by the range coder."""

from __future__ import annotations

import dataclasses

import numpy as np

from vidpress.model.coding import range_coder
from vidpress.model.metrics import top_classes
from vidpress.model.tables.banks import fit_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.pipeline.evaluation.rivals.codecs import Codec

# Levels of a score. Scores of one level rank by class, which costs some Hit@1.
_LEVELS = 32

# At most this many banks of tables; each needs some videos.
_MAX_BANKS = 256
_VIDEOS_A_BANK = 32

_CHUNK = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class Answers(Codec):
    """The best classes of each video by a network's own head, and the level of each one's score.

    What is coded is an integer for each class: 0, or the level of its score, 1 or more. What is restored is a score for
    each class: 0, or the middle of the level, above 0. So the restored scores are the answers themselves, and what
    another task's head can read.

    Attributes:
      head: Kernel and bias, which give the scores (logits) of vectors.
      num_best: How many classes are kept.
      low: The score at which the first level begins.
      step: How wide a level is.
      tables: The range coding tables of the integers.
    """

    head: tuple[np.ndarray, np.ndarray]
    num_best: int
    low: float
    step: float
    tables: RangeCodingTables | None = None

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Return the levels, uint8[num_videos, num_classes]."""
        return np.concatenate([self._levels(z[start : start + _CHUNK]) for start in range(0, len(z), _CHUNK)])

    def _levels(self, z: np.ndarray) -> np.ndarray:
        kernel, bias = self.head
        scores = z @ kernel + bias
        best = top_classes(scores, self.num_best)
        levels = np.zeros(scores.shape, np.uint8)
        found = np.floor((np.take_along_axis(scores, best, axis=1) - self.low) / self.step) + 1
        np.put_along_axis(levels, best, found.clip(1, _LEVELS).astype(np.uint8), axis=1)
        return levels

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return the scores, float32[num_videos, num_classes], at least 0."""
        return codes * np.float32(self.step)

    def num_bytes(self, codes: np.ndarray) -> float:
        """Return the bytes of the range coder's strings, and of the bits that name the banks."""
        if self.tables is None:
            raise ValueError("There are no tables yet.")
        chunks = (codes[start : start + _CHUNK].astype(np.int32) for start in range(0, len(codes), _CHUNK))
        strings = sum(len(range_coder.encode_cheapest(self.tables, chunk).data) for chunk in chunks)
        return strings + len(codes) * np.log2(self.tables.num_banks) / 8


def fit_answers(z: np.ndarray, head: tuple[np.ndarray, np.ndarray] | None, num_best: int) -> Answers:
    """Fit the levels to the scores of the best classes, and the tables to the levels.

    Args:
      z: float32[num_videos, num_dims], activations.
      head: Kernel and bias of the network's head.
      num_best: How many classes are kept.

    Raises:
      ValueError: If there is no head.
    """
    if head is None:
        raise ValueError("Answers need the head of the network that gives them.")
    kernel, bias = head
    best = np.concatenate(
        [
            np.partition(z[start : start + _CHUNK] @ kernel + bias, -num_best, axis=1)[:, -num_best:]
            for start in range(0, len(z), _CHUNK)
        ]
    )
    low, high = float(best.min()), float(best.max())
    unfitted = Answers(head, num_best, low, max((high - low) / _LEVELS, 1e-6))
    levels = unfitted.encode(z).astype(np.int32)
    num_banks = 2 ** max(0, min(_MAX_BANKS, len(z) // _VIDEOS_A_BANK).bit_length() - 1)
    return dataclasses.replace(unfitted, tables=fit_banks(RangeCodingTables.fit(levels), levels, num_banks))
