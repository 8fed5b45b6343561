"""Encode videos with a frozen model."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
import threadpoolctl
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from vidpress.model.data_set.rows import DeadLetter, EncodedVideos, encode_videos
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.kept_columns import KeptColumn
from vidpress.model.records.videos import PooledVideo
from vidpress.transforms import metrics

# NumPy's matrix product reads all weights once a batch: for 1152-6000-2000 it takes 232 us a video with 1024, 256 with
# 512 and 343 with 256. One batch and what it becomes take some 40 MB.
BATCH_SIZE = 1024
# Enough to begin with where a thread has nothing to do. While a batch is encoded, the thread that reads waits for
# Python's lock some twenty times: with 1152-2000 and batches of 256 for 13 us a video, of 512 for 10, of 1024 for 7.
SMALL_BATCH_SIZE = 512


@dataclasses.dataclass
class EncodeVideos(beam.PTransform):
    """Encode `PooledVideo`s. Gives a pair: Arrow batches of rows, and `DeadLetter`s.

    Attributes:
      model: Path or URI of the frozen model.
      model_id: The id that the model must have, if given.
      threads: How many batches a worker encodes while it goes on reading. With 0 it does one thing at a time, which is
        right if the runner has a worker for every core.
      columns: What `kept` of the videos is.
    """

    model: str
    _: dataclasses.KW_ONLY
    model_id: str | None = None
    threads: int = 0
    columns: Sequence[KeptColumn] = ()

    def __post_init__(self) -> None:
        super().__init__()
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} must be at least 0.")

    def expand(
        self, videos: beam.PCollection[PooledVideo]
    ) -> tuple[beam.PCollection[pa.RecordBatch], beam.PCollection[DeadLetter]]:
        """Batch and encode. The batches have the schema `vidpress.model.data_set.rows.schema_with(columns)`."""
        outputs = (
            videos
            | "Encode" >> beam.ParDo(_EncodeFn(self.model, self.model_id, self.threads, tuple(self.columns)))
            | "Split" >> beam.FlatMap(_split).with_outputs("dead_letters", main="rows")
        )
        return outputs.rows, outputs.dead_letters


class _EncodeFn(beam.DoFn):
    """Encodes a bundle's videos in batches, in threads of its own: NumPy and Numba release the GIL."""

    def __init__(self, model: str, model_id: str | None, threads: int, columns: tuple[KeptColumn, ...]):
        self._model_uri = model
        self._model_id = model_id
        self._columns = columns
        self._num_threads = max(threads, 1)
        # One more than there are threads, so that none waits for videos.
        self._max_running = threads + 1 if threads else 0

    def setup(self) -> None:
        start = time.monotonic()
        self._model = FrozenModel.load(self._model_uri, model_id=self._model_id)
        self._load_msec: int | None = round(1000 * (time.monotonic() - start))
        self._executor = concurrent.futures.ThreadPoolExecutor(self._num_threads)
        # There are as many workers, or threads, as cores already.
        self._blas_limit = threadpoolctl.threadpool_limits(1, "blas")

    def teardown(self) -> None:
        self._executor.shutdown()
        self._blas_limit.restore_original_limits()

    def start_bundle(self) -> None:
        if self._load_msec is not None:  # metrics count within bundles alone
            metrics.MODEL_LOAD_MSEC.update(self._load_msec)
            self._load_msec = None
        self._videos: list[PooledVideo] = []
        self._running: collections.deque[concurrent.futures.Future[EncodedVideos]] = collections.deque()

    def process(self, element: PooledVideo) -> Iterable[EncodedVideos]:
        self._videos.append(element)
        if len(self._videos) == BATCH_SIZE or (len(self._videos) == SMALL_BATCH_SIZE and self._has_idle_thread()):
            self._start_batch(self._videos)
            self._videos = []
            return self._finished(self._max_running)
        return ()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        size = max(math.ceil(len(self._videos) / self._num_threads), SMALL_BATCH_SIZE)
        for start in range(0, len(self._videos), size):
            self._start_batch(self._videos[start : start + size])
        for encoded in self._finished(max_running=0):
            yield GlobalWindows.windowed_value(encoded)

    def _has_idle_thread(self) -> bool:
        """Return whether there are threads, and not all are at work."""
        return self._max_running > 0 and sum(not batch.done() for batch in self._running) < self._num_threads

    def _start_batch(self, videos: list[PooledVideo]) -> None:
        self._running.append(self._executor.submit(encode_videos, self._model, videos, self._columns))

    def _finished(self, max_running: int) -> Iterator[EncodedVideos]:
        """Wait until no more than so many batches are under way, and give the others."""
        while len(self._running) > max_running:
            yield self._running.popleft().result()


def _split(encoded: EncodedVideos) -> Iterable[pa.RecordBatch | beam.pvalue.TaggedOutput]:
    code_bytes = pc.binary_length(encoded.rows["code"]).to_numpy()
    metrics.VIDEOS_ENCODED.inc(encoded.rows.num_rows)
    metrics.CODE_BYTES.inc(int(code_bytes.sum()))
    for num_bytes in code_bytes.tolist():
        metrics.CODE_BYTES_PER_VIDEO.update(num_bytes)
    yield encoded.rows
    for letter in encoded.dead_letters:
        metrics.DEAD_LETTERS.inc()
        yield beam.pvalue.TaggedOutput("dead_letters", letter)
