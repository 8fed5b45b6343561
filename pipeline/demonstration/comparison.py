"""What the demo compares: the same videos stored in several ways, with the bytes and the accuracy of each."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vidpress.model.data_set.manifest import Manifest
from vidpress.model.features import FeatureSpec
from vidpress.model.files.file_names import join
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.shards.shard import Shard
from vidpress.pipeline.evaluation.rivals import codecs
from vidpress.pipeline.evaluation.videos.measuring import task_metrics

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos

# Two GAPs that differ by less are called the same. Three networks with a rate, trained as in the demo on real videos
# with the seeds 0, 1 and 2, had GAPs of 0.6918, 0.6934 and 0.6919.
SAME_GAP = 0.002


class Row(NamedTuple):
    """A way to store videos.

    Attributes:
      name: What is stored, and how.
      bytes_per_video: Bytes that it takes for each video.
      gap: GAP of the network's own classifier, trained with it, on what is read back.
    """

    name: str
    bytes_per_video: float
    gap: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
      features: The networks' input.
      activations: The activations of the network without a rate, unchanged.
      int8: The same activations, with one byte for each dimension.
      rounded: The same activations, rounded to integers and range-coded: the codes.
      codes: vidpress's codes.
      file: vidpress's whole Parquet files, and the tables that they share.
      num_videos: How many validation videos there are.
      table_bytes: Bytes of the tables.
    """

    features: Row
    activations: Row
    int8: Row
    rounded: Row
    codes: Row
    file: Row
    num_videos: int
    table_bytes: int

    @property
    def rows(self) -> tuple[Row, ...]:
        """The table's rows."""
        return self.features, self.activations, self.int8, self.rounded, self.codes, self.file


def compare(output: pathlib.Path, train: str, validation: str, num_classes: int) -> Comparison:
    """Measure what is in a demo's folder.

    Args:
      output: The folder, with the models `model-without-rate.safetensors` and `model-vidpress.safetensors`, and the
        data set `compact-NAME-validation` of each.
      train: Glob of the training videos.
      validation: Glob of the validation videos.
      num_classes: How many classes there are.
    """
    from vidpress.model.training import training_data

    training, videos = (
        training_data.load_videos(training_data.match_files([glob]), FeatureSpec(), num_classes)
        for glob in (train, validation)
    )
    network = FrozenModel.load(output / "model-without-rate.safetensors")
    z = network.bottleneck(np.asarray(videos.x))

    def codec_row(name: str, codec: codecs.Codec, vectors: np.ndarray, *, inputs: bool = False) -> Row:
        """Store vectors by a codec, and give what is read back to the network's classifier."""
        codes = codec.encode(vectors)
        stored = codec.decode(codes)
        gap = classifier_gap(network, videos, network.bottleneck(stored) if inputs else stored)
        return Row(name, codec.num_bytes(codes) / len(codes), gap)

    def data_set_row(name: str, data_set: str) -> Row:
        """Read back what `vidpress encode` wrote."""
        folder = output / f"compact-{data_set}-validation"
        model = FrozenModel.load(output / f"model-{data_set}.safetensors")
        stored = read_videos(folder)
        return Row(name, code_bytes_per_video(folder), classifier_gap(model, stored, stored.x))

    features = codec_row("input features x, float32 + zlib", codecs.Float32(), np.asarray(videos.x), inputs=True)
    activations = codec_row("activations without a rate, float32 + zlib", codecs.Float32(), z)
    int8 = codecs.fit_int8(network.bottleneck(np.asarray(training.x)))
    codes = data_set_row("vidpress, codes alone", "vidpress")
    folder = output / "compact-vidpress-validation"
    manifest = Manifest.load(folder)
    if manifest.tables is None:
        raise ValueError(f"{folder} has no file of tables.")
    file_bytes = sum(entry.bytes for entry in (*manifest.shards, manifest.tables))
    return Comparison(
        features,
        activations,
        codec_row("  the same, int8 in Parquet", int8, z),
        data_set_row("  the same, rounded to integers, codes alone", "without-rate"),
        codes,
        Row("vidpress, the Parquet file and its tables", file_bytes / manifest.counts.videos, codes.gap),
        manifest.counts.videos,
        manifest.tables.bytes,
    )


def code_bytes_per_video(folder: pathlib.Path) -> float:
    """Return the bytes a video of a data set's codes, and of the bits that say which bank of tables decodes each."""
    manifest = Manifest.load(folder)
    num_banks = Shard.open(join(folder, manifest.shards[0].name)).header.tables.num_banks
    return manifest.counts.code_bytes / manifest.counts.videos + np.log2(num_banks) / 8


def read_videos(folder: pathlib.Path) -> LabelledVideos:
    """Read a data set as a training job does; `x` is what was decoded. Videos without labels are left out."""
    from vidpress.model.training.training_data import LabelledVideos

    batches = list(VideoDataset(folder))
    labels = [labels for batch in batches for labels in batch.labels]
    features = np.concatenate([batch.features for batch in batches])
    counts = np.array(list(map(len, labels)))
    return LabelledVideos(
        x=features[counts > 0],
        labels=np.concatenate(labels),
        label_start=np.concatenate([[0], np.cumsum(counts[counts > 0])]),
        num_unlabelled=int(np.sum(counts == 0)),
        fingerprint={},
    )


def classifier_gap(model: FrozenModel, videos: LabelledVideos, stored: np.ndarray) -> float:
    """Return the GAP of a model's classifier on features of some videos that were stored and read back."""
    return task_metrics(model.logits, dataclasses.replace(videos, x=stored))["gap"]


def table(comparison: Comparison, description: str) -> list[str]:
    """Return the lines of the table.

    Args:
      comparison: What was measured.
      description: What the data are.
    """
    width = max(len(row.name) for row in comparison.rows)
    return [
        f"{comparison.num_videos:,} videos that no network was trained on ({description}):",
        "",
        f"  {'what is stored for each video':<{width}}  {'bytes':>9}  {'GAP':>7}",
        *(f"  {row.name:<{width}}  {row.bytes_per_video:>9,.1f}  {row.gap:>7.4f}" for row in comparison.rows),
        "",
        "GAP is how well the network's classifier, given what is read back, finds the videos' classes: the average",
        "precision of the 20 best guesses for each video, all in one ranking; 1 is the best.",
    ]


def findings(comparison: Comparison) -> list[str]:
    """Return three lines that state the results, good or bad."""
    codes, activations, rounded = comparison.codes, comparison.activations, comparison.rounded
    ratio = codes.bytes_per_video / rounded.bytes_per_video
    file_bytes, table_bytes = comparison.file.bytes_per_video, comparison.table_bytes / comparison.num_videos
    return [
        f"- vidpress's codes take {codes.bytes_per_video / activations.bytes_per_video:.1%} of the activations' bytes, "
        f"and their GAP is {_difference(codes.gap, activations.gap)}.",
        f"- Compared with rounding alone, without a rate, vidpress's codes take {abs(1 - ratio):.0%} "
        f"{'less' if ratio < 1 else 'more'}, and their GAP is {_difference(codes.gap, rounded.gap)}.",
        f"- The files also hold ids, labels and tables: {table_bytes:,.1f} of their {file_bytes:,.1f} bytes a video "
        f"are tables, {comparison.table_bytes:,} bytes that {comparison.num_videos:,} videos share.",
    ]


def _difference(gap: float, other: float) -> str:
    if abs(gap - other) < SAME_GAP:
        return f"the same ({gap:.4f} and {other:.4f}; seeds differ by {SAME_GAP:g})"
    return f"{'higher' if gap > other else 'LOWER'} by {abs(gap - other):.4f}"
