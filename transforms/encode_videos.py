"""Encode videos with a frozen model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.ml.inference.base import ModelHandler, RunInference

from vidpress.model.frozen_model import FrozenModel
from vidpress.model.rows import DeadLetter, EncodedVideos, encode_videos
from vidpress.model.videos import PooledVideo
from vidpress.transforms import metrics

# Larger batches are no faster, and hold their videos longer.
BATCH_SIZE = 256


class FrozenModelHandler(ModelHandler[PooledVideo, EncodedVideos, FrozenModel]):
    """Runs a frozen model under Beam's `RunInference`; encodes a batch of videos at a time."""

    def __init__(self, model: str, model_id: str | None = None, batch_size: int = BATCH_SIZE):
        super().__init__()
        self._model = model
        self._model_id = model_id
        self._batch_size = batch_size

    def load_model(self) -> FrozenModel:
        """Load the model; Beam does so once a process."""
        return FrozenModel.load(self._model, model_id=self._model_id)

    def run_inference(
        self, batch: Sequence[PooledVideo], model: FrozenModel, inference_args: dict[str, Any] | None = None
    ) -> Iterable[EncodedVideos]:
        """Encode a batch; gives one element for all of it."""
        encoded = encode_videos(model, batch)
        code_bytes = pc.binary_length(encoded.rows["code"]).to_numpy()
        metrics.VIDEOS_ENCODED.inc(encoded.rows.num_rows)
        metrics.CODE_BYTES.inc(int(code_bytes.sum()))
        for num_bytes in code_bytes.tolist():
            metrics.CODE_BYTES_PER_VIDEO.update(num_bytes)
        return [encoded]

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        """Return the one batch size: a video's code does not depend on it, its cost does."""
        return {"min_batch_size": self._batch_size, "max_batch_size": self._batch_size}

    def get_num_bytes(self, batch: Sequence[PooledVideo]) -> int:
        """Return the bytes of the input vectors."""
        return sum(video.x.nbytes for video in batch)

    def get_metrics_namespace(self) -> str:
        """Return the namespace of RunInference's own metrics."""
        return metrics.NAMESPACE


@dataclasses.dataclass
class EncodeVideos(beam.PTransform):
    """Encode `PooledVideo`s to a pair of Arrow batches of rows and `DeadLetter`s.

    Attributes:
      model: Path or URI of the frozen model.
      model_id: The identity that it must have, if given.
    """

    model: str
    _: dataclasses.KW_ONLY
    model_id: str | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def expand(
        self, videos: beam.PCollection[PooledVideo]
    ) -> tuple[beam.PCollection[pa.RecordBatch], beam.PCollection[DeadLetter]]:
        """Batch and encode; the batches are of `vidpress.model.rows.SCHEMA`."""
        outputs = (
            videos
            | "Encode" >> RunInference(FrozenModelHandler(self.model, self.model_id))
            | "Split" >> beam.FlatMap(_split).with_outputs("dead_letters", main="rows")
        )
        return outputs.rows, outputs.dead_letters


def _split(encoded: EncodedVideos) -> Iterable[Any]:
    yield encoded.rows
    for letter in encoded.dead_letters:
        metrics.DEAD_LETTERS.inc()
        yield beam.pvalue.TaggedOutput("dead_letters", letter)
