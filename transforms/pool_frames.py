"""Average the frames of videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import apache_beam as beam

from vidpress.model.data_set.rows import DeadLetter
from vidpress.model.features import FeatureSpec
from vidpress.model.records.examples import RecordError
from vidpress.model.records.videos import PooledVideo, Video, pool_frames
from vidpress.transforms import metrics
from vidpress.transforms.coders import VideoCoder

beam.coders.registry.register_coder(PooledVideo, VideoCoder)


@dataclasses.dataclass
class PoolFrames(beam.PTransform):
    """Average the frames of `Video`s and dequantize them. Gives a pair: `PooledVideo`s and `DeadLetter`s.

    Attributes:
      spec: The features, in the order of the input vector.
    """

    _: dataclasses.KW_ONLY
    spec: FeatureSpec = FeatureSpec()

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, videos: beam.PCollection[Video]
    ) -> tuple[beam.PCollection[PooledVideo], beam.PCollection[DeadLetter]]:
        """Pool each video. One that cannot be pooled becomes a dead letter, without its frames."""
        pool = beam.ParDo(_PoolFn(self.spec)).with_output_types(PooledVideo)
        outputs = videos | "Pool" >> pool.with_outputs("dead_letters", main="pooled")
        return outputs.pooled, outputs.dead_letters


class _PoolFn(beam.DoFn):
    def __init__(self, spec: FeatureSpec):
        self._spec = spec

    def process(self, element: Video) -> Iterable[Any]:
        try:
            pooled = pool_frames(element, self._spec)
        except RecordError as error:
            metrics.DEAD_LETTERS.inc()
            yield beam.pvalue.TaggedOutput(
                "dead_letters", DeadLetter(element.file, element.offset, str(error), element.id)
            )
            return
        if pooled.num_frames is not None:
            metrics.FRAMES_PER_VIDEO.update(pooled.num_frames)
        yield pooled
