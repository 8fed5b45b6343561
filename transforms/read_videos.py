"""Read videos from TFRecord files of YouTube-8M's kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import apache_beam as beam
from apache_beam.io import fileio
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from vidpress.model.examples import RecordError
from vidpress.model.features import FeatureSpec
from vidpress.model.manifest import InputFile, is_new
from vidpress.model.rows import DeadLetter
from vidpress.model.tfrecord import Damage, open_gzip, read_tfrecords
from vidpress.model.videos import Video, parse_video
from vidpress.transforms import metrics, progress
from vidpress.transforms.coders import VideoCoder

beam.coders.registry.register_coder(Video, VideoCoder)


class VideosRead(NamedTuple):
    """What `ReadVideos` gives.

    Attributes:
      videos: The `Video`s.
      dead_letters: A `DeadLetter` for each record that is none.
      inputs: The `InputFile`s that were read.
    """

    videos: beam.PCollection[Video]
    dead_letters: beam.PCollection[DeadLetter]
    inputs: beam.PCollection[InputFile]


def open_tfrecords(path: str) -> BinaryIO:
    """Open a file of TFRecords through Beam's file systems; `.gz` is decompressed."""
    file = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    return open_gzip(file) if path.endswith(".gz") else file


def read_videos(path: str, spec: FeatureSpec) -> Iterator[tuple[int, Video | DeadLetter]]:
    """Read the videos of one file.

    Args:
      path: A TFRecord file of Examples (video level) or SequenceExamples (frame level), local or remote.
      spec: The features to take.

    Yields:
      The payload's length in bytes with the video, or with the reason why there is none, for every record.
    """
    with open_tfrecords(path) as file:
        for offset, payload in read_tfrecords(file):
            if isinstance(payload, Damage):
                yield 0, DeadLetter(path, offset, payload.reason)
                continue
            try:
                yield len(payload), parse_video(payload, spec, file=path, offset=offset)
            except RecordError as error:
                yield len(payload), DeadLetter(path, offset, str(error), error.video_id)


@dataclasses.dataclass
class ReadVideos(beam.PTransform):
    """Read frame-level and video-level records, from a pipeline's beginning to `VideosRead`.

    Attributes:
      file_patterns: Paths or globs; each must match something.
      spec: The features to take.
      known_files: Paths and sizes of files that are not to be read again; one that has another size now is an error.
    """

    file_patterns: Sequence[str]
    _: dataclasses.KW_ONLY
    spec: FeatureSpec = FeatureSpec()
    known_files: beam.PCollection[tuple[str, int]] | None = None

    def __post_init__(self) -> None:
        super().__init__()
        if isinstance(self.file_patterns, str) or not self.file_patterns:
            raise ValueError(f"file_patterns must be a list of one or more patterns, not {self.file_patterns!r}.")

    def expand(self, pbegin: beam.pvalue.PBegin) -> VideosRead:
        """Match the patterns, deal out the files that are new, each once, and read each on one worker."""
        matched = (
            pbegin
            | "Patterns" >> beam.Create(list(self.file_patterns))
            | "Match files" >> fileio.MatchAll(fileio.EmptyMatchTreatment.DISALLOW)
            | "Paths and sizes" >> beam.Map(lambda file: (file.path, file.size_in_bytes))
        )
        known = pbegin | "No known files" >> beam.Create([]) if self.known_files is None else self.known_files
        outputs = (
            {"matched": matched, "known": known}
            | "Deal out files" >> beam.CoGroupByKey()
            | "Leave out known files" >> beam.FlatMap(_new_files)
            | "Read records"
            >> beam.ParDo(_ReadFn(self.spec))
            .with_output_types(Video)
            .with_outputs("dead_letters", "inputs", main="videos")
        )
        return VideosRead(outputs.videos, outputs.dead_letters, outputs.inputs)


def _new_files(element: tuple[str, dict[str, Iterable[int]]]) -> Iterator[tuple[str, int]]:
    path, sizes = element
    # Two patterns may match a file, and a data set may list files that no pattern matches.
    for num_bytes in set(sizes["matched"]):
        if is_new(path, num_bytes, sizes["known"]):
            yield path, num_bytes


class _ReadFn(beam.DoFn):
    def __init__(self, spec: FeatureSpec):
        self._spec = spec

    def process(self, element: tuple[str, int]) -> Iterable[Any]:
        path, file_bytes = element
        records = 0
        record_bytes = 0
        for num_bytes, item in read_videos(path, self._spec):
            records += 1
            record_bytes += num_bytes
            progress.advance(num_bytes)
            if isinstance(item, Video):
                yield item
            else:
                metrics.DEAD_LETTERS.inc()
                yield beam.pvalue.TaggedOutput("dead_letters", item)
        metrics.RECORDS_READ.inc(records)
        metrics.INPUT_BYTES.inc(record_bytes)
        yield beam.pvalue.TaggedOutput("inputs", InputFile(path, file_bytes, records, record_bytes))
