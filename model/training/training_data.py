"""Training data: TFRecords are read and pooled once, then batches are drawn from them.

Pooled videos go to a temporary file on local disk that is mapped to memory: as fast as memory while it fits, and no
frame is read or pooled a second time. Since any video can be reached at once, the order of the data is a function
of the seed and the step alone, and a training that resumes need not read its way back to where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, BinaryIO

import numpy as np

from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.files import input_files
from vidpress.model.metrics import multi_hot
from vidpress.model.records.examples import RecordError, parse_record
from vidpress.model.records.tfrecord import Damage, read_tfrecords
from vidpress.model.records.videos import PooledVideo, listed, parse_video, pool_frames
from vidpress.model.training import prefetching

# How many videos go into a fingerprint together: their values, then their labels, then how many labels each has.
_VIDEO_LEVEL_CHUNK = 256
_FRAME_LEVEL_CHUNK = 16


class TrainingDataError(VidpressError, ValueError):
    """Training data that cannot be read or trained on: the message names the file and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledVideos:
    """The pooled, labelled videos of some files, in the order of the files' names.

    Attributes:
      x: float32[num_videos, input_size], dequantized means over each video's own frames; usually a map of a file.
      labels: int32[num_labels], class indices, video after video.
      label_start: int64[num_videos + 1], where each video's labels begin.
      num_unlabelled: How many videos were left out because they have no labels.
      fingerprint: JSON values that tell which data these are: files, bytes, records, and a SHA-256 over the files'
        names and sizes and all videos' values and labels.
    """

    x: np.ndarray
    labels: np.ndarray
    label_start: np.ndarray
    num_unlabelled: int
    fingerprint: dict[str, Any]

    def __len__(self) -> int:
        return len(self.x)

    def multi_hot(self, rows: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the labels of some videos, bool[len(rows), num_classes]."""
        lists = [self.labels[self.label_start[row] : self.label_start[row + 1]] for row in rows]
        return multi_hot(lists, num_classes)

    def sample(self, max_videos: int) -> LabelledVideos:
        """Return at most `max_videos` of the videos, evenly spaced; the fingerprint stays that of all."""
        if len(self) <= max_videos:
            return self
        return self.take(np.linspace(0, len(self) - 1, max_videos).astype(np.int64))

    def take(self, rows: np.ndarray) -> LabelledVideos:
        """Return the videos of some rows; the fingerprint stays that of all."""
        counts = (self.label_start[1:] - self.label_start[:-1])[rows]
        return dataclasses.replace(
            self,
            x=self.x[rows],
            labels=np.concatenate(
                [self.labels[:0], *(self.labels[self.label_start[row] : self.label_start[row + 1]] for row in rows)]
            ),
            label_start=np.concatenate([[0], np.cumsum(counts)]),
        )

    def relabelled(self, new_class: np.ndarray, name: str) -> LabelledVideos:
        """Return the videos with other classes, without those that have none of them.

        Args:
          new_class: int[num_classes], the new number of each class, or -1 for classes that are left out.
          name: What the fingerprint says about it: it must go with `new_class`.
        """
        labels = new_class[self.labels]
        kept = labels >= 0
        video = np.repeat(np.arange(len(self)), np.diff(self.label_start))
        counts = np.bincount(video[kept], minlength=len(self))
        labelled = np.flatnonzero(counts)
        fingerprint = {
            **self.fingerprint,
            "labelled_videos": len(labelled),
            "classes": name,
            "sha256": hashlib.sha256(f"{self.fingerprint['sha256']} {name}".encode()).hexdigest(),
        }
        return dataclasses.replace(
            self,
            x=self.x if len(labelled) == len(self) else self.x[labelled],
            labels=labels[kept].astype(np.int32),
            label_start=np.concatenate([[0], np.cumsum(counts[labelled])]),
            num_unlabelled=self.num_unlabelled + len(self) - len(labelled),
            fingerprint=fingerprint,
        )

    def class_frequencies(self, num_classes: int) -> np.ndarray:
        """Return the share of videos that have each class, float64[num_classes], within (0, 1).

        For each class, half a video that has it and half a video that does not are added: no share is 0 or 1.
        """
        counts = np.minimum(np.bincount(self.labels, minlength=num_classes), len(self))
        return (counts + 0.5) / (len(self) + 1)


def match_files(patterns: Sequence[str]) -> list[str]:
    """Return the files of some patterns, sorted, each once, as `vidpress.model.files.input_files.match` finds them.

    Raises:
      TrainingDataError: If a pattern matches nothing, or something that cannot be read.
    """
    try:
        return [file.path for file in input_files.match(patterns)]
    except VidpressError as error:
        raise TrainingDataError(str(error)) from error


def load_videos(
    files: Sequence[str],
    spec: FeatureSpec,
    num_classes: int | None,
    *,
    progress: Callable[[int], object] = lambda num_videos: None,
) -> LabelledVideos:
    """Read, parse and pool all videos of some TFRecord files, as encoding does; gzip is unpacked.

    The first record says whether the files are frame level (SequenceExamples with feature lists) or video level.

    Args:
      files: The files, not patterns.
      spec: Names and sizes of the features.
      num_classes: How many classes there are; or None to read all videos, and no labels.
      progress: Called with the number of records of every chunk read.

    Returns:
      The videos that have labels, or all.

    Raises:
      TrainingDataError: If a file cannot be read, a record is damaged or not a video of this spec, a label is not a
        class, or no video is left. Training stops at bad data, where encoding sets them aside: what a model was
        trained on should be known.
    """
    sizes = [_size(file) for file in files]
    digest = hashlib.sha256()
    for file, num_bytes in zip(files, sizes, strict=True):
        digest.update(f"{file.rsplit('/', 1)[-1]} {num_bytes}\n".encode())
    num_records = num_videos = 0
    labels_parts, counts_parts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    store = tempfile.TemporaryFile(prefix="vidpress-")  # noqa: SIM115 - lives as long as the map of it
    for chunk in _chunks(files, spec, num_classes):
        num_records += len(chunk)
        taken = [video for video in chunk if num_classes is None or len(video.labels)]
        x = np.stack([video.x for video in taken]) if taken else np.empty((0, spec.input_size), np.float32)
        found = [] if num_classes is None else [video.labels for video in taken]
        labels = np.concatenate([labels_parts[0], *found])
        counts = np.zeros(len(taken), np.int64) if num_classes is None else np.array(list(map(len, found)), np.int64)
        for part in (x, labels, counts):
            digest.update(part.data)
        _append(store, x)
        labels_parts.append(labels)
        counts_parts.append(counts)
        num_videos += len(x)
        progress(len(chunk))
    where = f"{files[0]}{' and others' if len(files) > 1 else ''}"
    if not num_records:
        raise TrainingDataError(f"{files[0]}{' and the others hold' if len(files) > 1 else ' holds'} no records.")
    if not num_videos:
        raise TrainingDataError(
            f"None of the {num_records} videos in {where} has labels (feature {spec.labels_key!r}): there is nothing "
            f"to learn from. If they have some, name their key with --labels_key; keys are {_first_keys(files)}."
        )
    return LabelledVideos(
        x=np.memmap(store, np.float32, "r", shape=(num_videos, spec.input_size)),
        labels=np.concatenate(labels_parts),
        label_start=np.concatenate([[0], np.cumsum(np.concatenate(counts_parts))]),
        num_unlabelled=num_records - num_videos,
        fingerprint={
            "files": len(files),
            "bytes": sum(sizes),
            "first_file": files[0].rsplit("/", 1)[-1],
            "last_file": files[-1].rsplit("/", 1)[-1],
            "records": num_records,
            **({} if num_classes is None else {"labelled_videos": num_videos}),
            "sha256": digest.hexdigest(),
        },
    )


def training_batches(
    videos: LabelledVideos,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    first_step: int,
    num_steps: int,
    mix: bool = False,
) -> Iterable[prefetching.Batch]:
    """Return the batches of some training steps.

    Every epoch has each video once, in its own order; a batch may reach from one epoch into the next. The batch of step
    s depends only on `seed` and s.

    Args:
      videos: The training data.
      num_classes: How many classes there are.
      batch_size: Videos in a step.
      seed: Seed of the order.
      first_step: The first step, counted from 0.
      num_steps: How many steps.
      mix: Mix each video's `x` with that of another video of its batch, `share * x + (1 - share) * other`, with a share
        drawn from 1/2 to 1. That is the mean over a video that is cut together from both. The labels stay the video's
        own, and so say little about the mixture: this is for training with a teacher, which does not use them.

    Returns:
      `(x float32[batch_size, input_size], labels float32[batch_size, num_classes])` of each step, labels multi-hot
      (`prefetching.batches`).
    """
    num_videos = len(videos)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_videos)

    def gather(step: int) -> prefetching.Batch:
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), num_videos)
        rows = np.concatenate([order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        x = videos.x[rows]
        if mix:
            # The last number keeps the streams apart, of orders and of shares.
            rng = np.random.Generator(np.random.Philox([seed, step, 2]))
            share = 1 - rng.random((batch_size, 1), np.float32) / 2
            x = share * x + (1 - share) * x[::-1]
        return x, videos.multi_hot(rows, num_classes).astype(np.float32)

    return prefetching.batches(gather, range(first_step, first_step + num_steps))


def _append(store: IO[bytes], x: np.ndarray) -> None:
    try:
        store.write(x.data)
        store.flush()
    except OSError:
        with contextlib.suppress(OSError):
            store.close()  # otherwise it raises once more when it is garbage-collected
        raise


def _size(file: str) -> int:
    opened, num_bytes = _open(file)
    opened.close()
    return num_bytes


def _open(file: str) -> tuple[BinaryIO, int]:
    try:
        return input_files.open_input(file)
    except VidpressError as error:
        raise TrainingDataError(str(error)) from error


def _records(file: str) -> Iterator[tuple[int, bytes]]:
    """Yield offset and payload of a file's records; none may be damaged."""
    opened, num_bytes = _open(file)
    try:
        with opened:
            for offset, payload in read_tfrecords(opened, num_bytes, name=file):
                if isinstance(payload, Damage):
                    what = f"{file} is not a TFRecord file of videos" if offset == 0 else f"{file}, byte {offset}"
                    raise TrainingDataError(f"{what}: {payload.reason}.")
                yield offset, payload
    except OSError as error:
        raise TrainingDataError(str(input_files.unreadable(file, error))) from error


def _chunks(files: Sequence[str], spec: FeatureSpec, num_classes: int | None) -> Iterator[list[PooledVideo]]:
    """Yield the videos of each file in lists of the sizes by which fingerprints are computed."""
    frame_level = None
    for file in files:
        chunk: list[PooledVideo] = []
        for offset, payload in _records(file):
            try:
                video = pool_frames(parse_video(payload, spec, with_labels=num_classes is not None), spec)
            except RecordError as error:
                raise TrainingDataError(f"{file}, byte {offset}: {error}.") from error
            if frame_level is None:
                frame_level = video.num_frames is not None
            if frame_level != (video.num_frames is not None):
                level = "frame" if frame_level else "video"
                raise TrainingDataError(
                    f"{file}, byte {offset}: not {level} level, as the first record is; train on one kind."
                )
            if num_classes is not None and len(video.labels) and video.labels.max() >= num_classes:
                raise TrainingDataError(
                    f"{file}, byte {offset}: label {video.labels.max()} is not among the {num_classes} classes (0 to "
                    f"{num_classes - 1}): give the number of classes of this data set with --classes."
                )
            chunk.append(video)
            if len(chunk) == (_FRAME_LEVEL_CHUNK if frame_level else _VIDEO_LEVEL_CHUNK):
                yield chunk
                chunk = []
        if chunk:
            yield chunk


def _first_keys(files: Sequence[str]) -> list[str]:
    """Return the names of the first record's context features."""
    return listed(next((parse_record(payload)[0] for file in files for _, payload in _records(file)), {}))
