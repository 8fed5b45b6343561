"""Training data: TFRecords are read and pooled once, then batches are drawn from them with tf.data.

Pooled videos go to a temporary file on local disk that is mapped to memory: as fast as memory while it fits, and no
frame is read or pooled a second time. Since any video can be reached at once, the order of the data is a function
of the seed and the step alone, and a training that resumes need not read its way back to where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from vidpress.model import examples
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.metrics import multi_hot
from vidpress.model.tfrecord import Damage, read_tfrecords
from vidpress.model.videos import parse_video, pool_frames

# Records parsed by one call. Frame-level ones are parsed one by one, a quarter of a megabyte each.
_VIDEO_LEVEL_BATCH = 256
_FRAME_LEVEL_BATCH = 16


class TrainingDataError(VidpressError, ValueError):
    """Training data that cannot be read, or not trained on: the message names the file and the reason."""


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
        """Return so many of the videos at most, at even distances; the fingerprint stays that of all."""
        if len(self) <= max_videos:
            return self
        return self.take(np.linspace(0, len(self) - 1, max_videos).astype(np.int64))

    def take(self, rows: np.ndarray) -> LabelledVideos:
        """Return the videos of some rows; the fingerprint stays that of all."""
        counts = (self.label_start[1:] - self.label_start[:-1])[rows]
        return dataclasses.replace(
            self,
            x=self.x[rows],
            labels=np.concatenate([self.labels[self.label_start[row] : self.label_start[row + 1]] for row in rows]),
            label_start=np.concatenate([[0], np.cumsum(counts)]),
        )

    def class_frequencies(self, num_classes: int) -> np.ndarray:
        """Return the share of videos that have each class, float64[num_classes], within (0, 1).

        Half a video more has each class and half a video more has not, so that no share is 0 or 1.
        """
        counts = np.minimum(np.bincount(self.labels, minlength=num_classes), len(self))
        return (counts + 0.5) / (len(self) + 1)


def match_files(patterns: Sequence[str]) -> list[str]:
    """Return the files of some patterns, sorted, each once; paths and URIs that `tf.io.gfile` takes.

    Raises:
      TrainingDataError: If a pattern matches nothing.
    """
    files: set[str] = set()
    for pattern in patterns:
        try:
            matches = tf.io.gfile.glob(pattern)
        except tf.errors.OpError as error:
            raise TrainingDataError(f"{pattern} cannot be listed: {error.message}") from error
        if not matches:
            raise TrainingDataError(f"{pattern} matches no file: check the path, and quote globs in a shell.")
        files.update(matches)
    return sorted(files)


def load_videos(
    files: Sequence[str],
    spec: FeatureSpec,
    num_classes: int,
    *,
    progress: Callable[[int], object] = lambda num_videos: None,
) -> LabelledVideos:
    """Read, parse and pool all videos of some TFRecord files; files ending in .gz are unpacked.

    The first record says whether the files are frame level (SequenceExamples with feature lists) or video level.

    Args:
      files: The files, not patterns.
      spec: Names and sizes of the features.
      num_classes: How many classes there are.
      progress: Called with the number of records of every chunk read.

    Returns:
      The videos that have labels.

    Raises:
      TrainingDataError: If a file cannot be read, a record is damaged or not a video of this spec, a label is not a
        class, or no video has labels. Training stops at bad data, where encoding sets them aside: what a model was
        trained on should be known.
    """
    frame_level = _is_frame_level(files)
    records = tf.data.Dataset.from_tensor_slices(list(files)).enumerate()
    batch_size = _FRAME_LEVEL_BATCH if frame_level else _VIDEO_LEVEL_BATCH
    records = records.interleave(
        lambda index, file: _records(file).batch(batch_size).map(lambda payloads: (index, payloads)),
        cycle_length=1,  # one file after the other
    )
    parse = _parse_frame_level if frame_level else _parse_video_level
    chunks = records.map(
        lambda index, payloads: (index, *parse(payloads, spec)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    ).prefetch(tf.data.AUTOTUNE)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.rsplit('/', 1)[-1]} {tf.io.gfile.stat(file).length}\n".encode())
    num_records = num_videos = file_index = 0
    labels_parts, counts_parts = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
    store = tempfile.TemporaryFile(prefix="vidpress-")  # noqa: SIM115 - lives as long as the map of it
    try:
        for index, x, labels, counts in chunks.as_numpy_iterator():
            file_index = int(index)
            _check_chunk(files[file_index], x, labels, num_classes)
            num_records += len(x)
            labelled = counts > 0
            x = np.ascontiguousarray(x[labelled])
            labels, counts = labels.astype(np.int32), counts[labelled].astype(np.int64)
            for part in (x, labels, counts):
                digest.update(part.data)
            store.write(x.data)
            labels_parts.append(labels)
            counts_parts.append(counts)
            num_videos += len(x)
            progress(len(labelled))
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # TensorFlow quotes the record, which need not be UTF-8.
        # Its message names neither file nor record. The chunk that failed is of the last file seen or a later one.
        raise TrainingDataError(_find_bad_record(files[file_index:], spec, frame_level, error)) from error
    if not num_videos:
        raise TrainingDataError(
            f"None of the {num_records} videos in {files[0]}{' and others' if len(files) > 1 else ''} has labels "
            f"(feature {spec.labels_key!r}): there is nothing to learn from."
        )
    store.flush()
    return LabelledVideos(
        x=np.memmap(store, np.float32, "r", shape=(num_videos, spec.input_size)),
        labels=np.concatenate(labels_parts),
        label_start=np.concatenate([[0], np.cumsum(np.concatenate(counts_parts))]),
        num_unlabelled=num_records - num_videos,
        fingerprint={
            "files": len(files),
            "bytes": sum(tf.io.gfile.stat(file).length for file in files),
            "first_file": files[0].rsplit("/", 1)[-1],
            "last_file": files[-1].rsplit("/", 1)[-1],
            "records": num_records,
            "labelled_videos": num_videos,
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
    input_dropout: float = 0.0,
    mix: bool = False,
) -> tf.data.Dataset:
    """Return the batches of some training steps.

    In every epoch each video comes once, in an order of its own; a batch may reach from one epoch into the next. Step
    s's batch depends on `seed` and s alone.

    Args:
      videos: The training data.
      num_classes: How many classes there are.
      batch_size: Videos a step.
      seed: Of the order.
      first_step: The first step, counted from 0.
      num_steps: How many.
      input_dropout: The share of the numbers of `x` that become 0, drawn anew in every step; the others grow by as much
        as keeps their mean.
      mix: Mix each video's `x` with that of another video of its batch, `share * x + (1 - share) * other`, with a share
        drawn from 1/2 to 1: what the pooled frames of both would be, cut together. The labels stay the video's own, and
        so say little of the mixture: this is for a teacher, who is asked about it.

    Returns:
      A dataset of `(x float32[batch_size, input_size], labels float32[batch_size, num_classes])`, labels multi-hot.
    """
    num_videos = len(videos)

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox([seed, epoch])).permutation(num_videos)

    def gather(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        epochs, places = np.divmod(step * batch_size + np.arange(batch_size), num_videos)
        rows = np.concatenate([order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])
        x = videos.x[rows]
        if mix:
            # The last number keeps the streams apart: of orders, of what is dropped, of shares.
            rng = np.random.Generator(np.random.Philox([seed, int(step), 2]))
            share = 1 - rng.random((batch_size, 1), np.float32) / 2
            x = share * x + (1 - share) * x[::-1]
        if input_dropout:
            rng = np.random.Generator(np.random.Philox([seed, int(step), 1]))
            x = x * ((rng.random(x.shape, np.float32) >= input_dropout) * np.float32(1 / (1 - input_dropout)))
        return x, videos.multi_hot(rows, num_classes).astype(np.float32)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x, labels = tf.numpy_function(gather, [step], (tf.float32, tf.float32), stateful=False)
        return tf.ensure_shape(x, (batch_size, videos.x.shape[1])), tf.ensure_shape(labels, (batch_size, num_classes))

    steps = tf.data.Dataset.range(first_step, first_step + num_steps)
    return steps.map(batch, num_parallel_calls=2, deterministic=True).prefetch(4)


def _records(file: tf.Tensor | str) -> tf.data.Dataset:
    compression = tf.where(tf.strings.regex_full_match(file, r".*\.gz"), "GZIP", "")
    return tf.data.TFRecordDataset(file, compression_type=compression, buffer_size=4 << 20)


def _is_frame_level(files: Sequence[str]) -> bool:
    for file in files:
        try:
            for payload in _records(file).take(1).as_numpy_iterator():
                return bool(examples.parse_record(payload)[1])
        except (tf.errors.OpError, examples.RecordError) as error:
            raise TrainingDataError(f"{file} is not a TFRecord file of videos: {_first_line(error)}") from error
    raise TrainingDataError(f"{files[0]}{' and the others hold' if len(files) > 1 else ' holds'} no records.")


def _parse_video_level(payloads: tf.Tensor, spec: FeatureSpec) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return `(x float32[n, input_size], labels int64[m], labels a video int64[n])` of serialized Examples."""
    features: dict[str, Any] = {
        feature.mean_name: tf.io.FixedLenFeature([feature.size], tf.float32) for feature in spec.features
    }
    features[spec.labels_key] = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
    parsed = tf.io.parse_example(payloads, features)
    x = tf.concat([parsed[feature.mean_name] for feature in spec.features], axis=1)
    labels = parsed[spec.labels_key]
    return x, labels.flat_values, labels.row_lengths()


def _parse_frame_level(payloads: tf.Tensor, spec: FeatureSpec) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return `(x float32[n, input_size], labels int64[m], labels a video int64[n])` of serialized SequenceExamples."""
    sequence_features = {feature.name: tf.io.FixedLenSequenceFeature([], tf.string) for feature in spec.features}
    context_features = {spec.labels_key: tf.io.VarLenFeature(tf.int64)}

    def pool(payload: tf.Tensor) -> tuple[tf.Tensor, tf.RaggedTensor]:
        context, frames = tf.io.parse_single_sequence_example(payload, context_features, sequence_features)
        return _pool(frames, spec), tf.RaggedTensor.from_tensor(tf.sparse.to_dense(context[spec.labels_key])[None])[0]

    x, labels = tf.map_fn(
        pool,
        payloads,
        fn_output_signature=(
            tf.TensorSpec([spec.input_size], tf.float32),
            tf.RaggedTensorSpec([None], tf.int64, ragged_rank=0, row_splits_dtype=tf.int64),
        ),
    )
    return x, labels.flat_values, labels.row_lengths()


def _pool(frames: dict[str, tf.Tensor], spec: FeatureSpec) -> tf.Tensor:
    """Average one video's frames (serialized 8-bit numbers by feature) and dequantize: float32[input_size].

    To the bit what `vidpress.model.videos.pool_frames` gives: integer sums, then float64.
    """
    lengths = [tf.shape(frames[feature.name])[0] for feature in spec.features]
    checks = [tf.debugging.assert_positive(lengths[0], "the video has no frames")]
    checks += [tf.debugging.assert_equal(lengths[0], other, "features differ in length") for other in lengths[1:]]
    parts = []
    with tf.control_dependencies(checks):
        for feature, length in zip(spec.features, lengths, strict=True):
            # decode_raw itself refuses strings of different lengths.
            numbers = tf.io.decode_raw(frames[feature.name], tf.uint8)
            numbers = tf.ensure_shape(numbers, (None, feature.size))
            total = tf.reduce_sum(tf.cast(numbers, tf.int32), axis=0)
            mean = tf.cast(total, tf.float64) / tf.cast(length, tf.float64)
            parts.append(tf.cast(spec.dequantize(mean), tf.float32))
    return tf.concat(parts, axis=0)


def _check_chunk(file: str, x: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if not np.isfinite(x).all():
        column = int(np.flatnonzero(~np.isfinite(x).all(axis=0))[0])
        raise TrainingDataError(f"{file}: input {column} of a video is NaN or infinite.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise TrainingDataError(
            f"{file}: label {bad} is not among the {num_classes} classes (0 to {num_classes - 1}): give the number of "
            "classes of this data set with --classes."
        )


def _find_bad_record(files: Sequence[str], spec: FeatureSpec, frame_level: bool, error: Exception) -> str:
    """Read files again, record by record, and return what is wrong with the first record that is no video."""
    for file in files:
        if file.endswith(".gz"):
            continue
        try:
            with tf.io.gfile.GFile(file, "rb") as stream:
                for offset, payload in read_tfrecords(stream):
                    if isinstance(payload, Damage):
                        return f"{file}, byte {offset}: {payload.reason}."
                    try:
                        video = pool_frames(parse_video(payload, spec), spec)
                        labels_only = (video.num_frames is not None) == frame_level
                    except examples.RecordError as bad:
                        return f"{file}, byte {offset}: {bad}."
                    if not labels_only:
                        level = "frame" if frame_level else "video"
                        return f"{file}, byte {offset}: not {level} level, as the first record is; train on one kind."
        except tf.errors.OpError as unreadable:
            return f"{file} cannot be read: {_first_line(unreadable)}"
    return f"{files[0]}, or a file after it, cannot be parsed as {spec}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    message = error.message if isinstance(error, tf.errors.OpError) else str(error)
    return message.strip().splitlines()[0] if message.strip() else type(error).__name__
