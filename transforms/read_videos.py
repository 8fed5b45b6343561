"""Read videos from TFRecord files of the two layouts of YouTube-8M."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from vidpress.model.data_set.input_lists import InputFile, is_new
from vidpress.model.data_set.rows import DeadLetter
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.files import input_files
from vidpress.model.kept_columns import KeptColumn, check_columns
from vidpress.model.records.examples import RecordError, parse_record
from vidpress.model.records.tfrecord import Damage, read_tfrecords
from vidpress.model.records.videos import NO_LABELS, Video, listed, parse_video
from vidpress.transforms import metrics, progress
from vidpress.transforms.coders import VideoCoder

_log = logging.getLogger("vidpress")

# YouTube-8M of 2019 rates segments of five seconds.
_SEGMENT_LABELS = "segment_labels"
_MAX_KEYS = 100

beam.coders.registry.register_coder(Video, VideoCoder)


class MissingKeyError(VidpressError, ValueError):
    """A key that an option names, and that no record has."""


class VideosRead(NamedTuple):
    """What `ReadVideos` gives.

    Attributes:
      videos: The `Video`s.
      dead_letters: A `DeadLetter` for each record that is not a usable video.
      inputs: The `InputFile`s that were read.
    """

    videos: beam.PCollection[Video]
    dead_letters: beam.PCollection[DeadLetter]
    inputs: beam.PCollection[InputFile]


def read_records(path: str, num_bytes: int | None = None) -> Iterator[tuple[int, bytes | Damage]]:
    """Read the records of one TFRecord file, local or on Cloud Storage; gzip is unpacked.

    Args:
      path: The file.
      num_bytes: How many bytes of it are to be read; as many as there are, unless it is given.

    Yields:
      What `vidpress.model.records.tfrecord.read_tfrecords` does.

    Raises:
      InputError: If the file cannot be read, which a retry may mend.
    """
    try:
        if path.startswith("gs://"):
            file, size = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED), num_bytes
        else:
            file, size = input_files.open_local(path)
        with file:
            yield from read_tfrecords(file, size if num_bytes is None else num_bytes, name=path)
    except OSError as error:
        raise input_files.unreadable(path, error) from error


def read_videos(
    path: str,
    spec: FeatureSpec,
    *,
    columns: Sequence[KeptColumn] = (),
    num_bytes: int | None = None,
    keys: set[str] | None = None,
) -> Iterator[tuple[int, Video | DeadLetter]]:
    """Read the videos of one file.

    Args:
      path: A TFRecord file of Examples (video level) or SequenceExamples (frame level), local or remote.
      spec: The features to take.
      columns: What else to keep of the records.
      num_bytes: How many bytes of it are to be read; as many as there are, unless it is given.
      keys: Gets the names of the first record's context features; and of records that are set aside the key of the
        labels and those of kept columns, if they are there.

    Yields:
      For every record, the length of its payload in bytes, and the video or the reason why there is none.

    Raises:
      InputError: If the file cannot be read, which a retry may mend.
    """
    looked_for = _looked_for(spec, columns)
    is_first = True
    for offset, payload in read_records(path, num_bytes):
        if isinstance(payload, Damage):
            yield 0, DeadLetter(path, offset, payload.reason, lost_bytes=payload.lost_bytes)
            continue
        try:
            if is_first and keys is not None:
                keys.update(parse_record(payload)[0])
            is_first = False
            yield len(payload), parse_video(payload, spec, columns=columns, file=path, offset=offset)
        except RecordError as error:
            if keys is not None:
                with contextlib.suppress(RecordError):
                    keys |= looked_for.intersection(parse_record(payload)[0])
            yield len(payload), DeadLetter(path, offset, str(error), error.video_id)


def _looked_for(spec: FeatureSpec, columns: Sequence[KeptColumn]) -> set[str]:
    """Return the keys that records may have or not."""
    return {spec.labels_key, *(column.key for column in columns)}


@dataclasses.dataclass
class ReadVideos(beam.PTransform):
    """Read frame-level and video-level records. Takes a pipeline and gives `VideosRead`.

    Attributes:
      file_patterns: Paths or globs; each must match something.
      spec: The features to read.
      columns: What else to keep of the records.
      named_keys: Keys of labels or kept columns that somebody named, and that may be misspelt. If there are videos, and
        no record has one of these, the job fails: `inputs` are given only when all were seen.
      known_files: Paths of files that were read before, with their `InputFile.bytes` and `damaged_crc32`. They are read
        again only if `vidpress.model.data_set.input_lists.is_new` says so; one that has shrunk is an error.
      min_age: Files that were written to less than this number of seconds ago are left out.
    """

    file_patterns: Sequence[str]
    _: dataclasses.KW_ONLY
    spec: FeatureSpec = FeatureSpec()
    columns: Sequence[KeptColumn] = ()
    named_keys: Sequence[str] = ()
    known_files: beam.PCollection[tuple[str, tuple[int, int | None]]] | None = None
    min_age: float = 0

    def __post_init__(self) -> None:
        super().__init__()
        if isinstance(self.file_patterns, str) or not self.file_patterns:
            raise ValueError(f"file_patterns must be a list of one or more patterns, not {self.file_patterns!r}.")
        self.columns = check_columns(self.columns, self.spec)

    def expand(self, pbegin: beam.pvalue.PBegin) -> VideosRead:
        """Match the patterns, deal out the files that are new, each once, and read each on one worker."""
        matched = (
            pbegin
            | "Patterns" >> beam.Create(list(self.file_patterns))
            | "Match files" >> beam.FlatMap(_match, self.min_age)
            | "Paths and sizes" >> beam.Map(lambda file: (file.path, file.bytes))
        )
        known = pbegin | "No known files" >> beam.Create([]) if self.known_files is None else self.known_files
        outputs = (
            {"matched": matched, "known": known}
            | "Deal out files" >> beam.CoGroupByKey()
            | "Leave out known files" >> beam.FlatMap(_new_files)
            | "Read records"
            >> beam.ParDo(_ReadFn(self.spec, self.columns, self.named_keys))
            .with_output_types(Video)
            .with_outputs("dead_letters", "inputs", "seen", main="videos")
        )
        seen = outputs.seen | "What was seen" >> beam.CombineGlobally(_Seen.total)
        _ = seen | "Say what is left out" >> beam.Map(_say_what_is_left_out, self.spec, self.columns, self.named_keys)
        inputs = outputs.inputs
        if self.named_keys:  # else nothing has to wait
            inputs |= "Check keys" >> beam.Map(_after_check, beam.pvalue.AsSingleton(seen), self.named_keys)
        return VideosRead(outputs.videos, outputs.dead_letters, inputs)


def _match(pattern: str, min_age: float) -> list[input_files.MatchedFile]:
    return input_files.older_than(min_age, input_files.match([pattern]))


def _new_files(element: tuple[str, dict[str, Iterable[Any]]]) -> Iterator[tuple[str, int]]:
    path, found = element
    # Two patterns may match a file, which may have grown in between, and a data set may list files that none matches.
    num_bytes = max(found["matched"], default=None)
    if num_bytes is not None and is_new(path, num_bytes, found["known"]):
        yield path, num_bytes


class _Seen(NamedTuple):
    """What records have: how many videos were read, which keys of labels and kept columns are there, and keys of some.

    `found` are exact, and `keys` those of each file's first record.
    """

    videos: int
    found: frozenset[str]
    keys: tuple[str, ...]

    @classmethod
    def total(cls, parts: Iterable[_Seen]) -> _Seen:
        parts = list(parts)
        keys = sorted({key for part in parts for key in part.keys})[:_MAX_KEYS]
        return cls(sum(part.videos for part in parts), frozenset().union(*(part.found for part in parts)), tuple(keys))


def _after_check(file: InputFile, seen: _Seen, named_keys: Sequence[str]) -> InputFile:
    """Return a file, after seeing that the keys that were named are there."""
    missing = [key for key in named_keys if key not in seen.found]
    if seen.videos and missing:
        raise MissingKeyError(
            f"No record has the key {' or '.join(map(repr, missing))}, which --labels_key or --keep names: keys are "
            f"{listed(seen.keys)}. Correct the name, or leave it out. No manifest was written."
        )
    return file


def _say_what_is_left_out(
    seen: _Seen, spec: FeatureSpec, columns: Sequence[KeptColumn], named_keys: Sequence[str]
) -> None:
    kept = {column.key for column in columns}
    if seen.videos and spec.labels_key not in (*seen.found, *named_keys):
        _log.warning(
            "None of the %d videos has labels under %r. If they have some, name the key with --labels_key: keys are %s",
            seen.videos,
            spec.labels_key,
            listed(seen.keys),
        )
    if _SEGMENT_LABELS in seen.keys and _SEGMENT_LABELS not in kept:
        _log.warning(
            "Records have %r, ratings of parts of a video: each video is encoded as a whole, and these are left out. "
            "Keep them with --keep segment_labels:int64 segment_start_times:int64 segment_scores:float ...",
            _SEGMENT_LABELS,
        )


class _ReadFn(beam.DoFn):
    def __init__(self, spec: FeatureSpec, columns: Sequence[KeptColumn], named_keys: Sequence[str]):
        self._spec = spec
        self._columns = columns
        self._named_labels_key = spec.labels_key if spec.labels_key in named_keys else None

    def process(self, element: tuple[str, int]) -> Iterable[Any]:
        path, file_bytes = element
        records = record_bytes = lost_bytes = videos = 0
        has_labels = False
        keys: set[str] = set()
        found: set[str] = set()
        is_damaged = False
        version = input_files.version(path)
        reading = read_videos(path, self._spec, columns=self._columns, num_bytes=file_bytes, keys=keys)
        for num_bytes, item in reading:
            records += 1
            record_bytes += num_bytes
            progress.advance(num_bytes)
            if isinstance(item, Video):
                videos += 1
                has_labels |= item.labels is not NO_LABELS
                if self._columns:
                    kept = zip(self._columns, item.kept, strict=True)
                    found.update(column.key for column, values in kept if values is not None)
                yield item
            else:
                is_damaged |= not num_bytes  # there is no payload
                lost_bytes += item.lost_bytes
                metrics.DEAD_LETTERS.inc()
                yield beam.pvalue.TaggedOutput("dead_letters", item)
        metrics.RECORDS_READ.inc(records)
        metrics.INPUT_BYTES.inc(record_bytes)
        if has_labels:
            found.add(self._spec.labels_key)
        found |= keys & _looked_for(self._spec, self._columns)
        damaged_crc32 = input_files.crc32(path, file_bytes) if is_damaged else None
        # Of a file that was mended meanwhile, this would be the checksum: it would never be read again. (One that has
        # grown will be.)
        if is_damaged and (now := input_files.version(path)) != version and now[0] <= file_bytes:
            raise input_files.InputError(
                f"{input_files.shown(path)} is damaged, and was changed while it was read: run again when it is whole."
            )
        labels_key = self._named_labels_key if self._named_labels_key in found else None
        file = InputFile(path, file_bytes, records, record_bytes, lost_bytes, damaged_crc32, labels_key)
        yield beam.pvalue.TaggedOutput("inputs", file)
        yield beam.pvalue.TaggedOutput("seen", _Seen(videos, frozenset(found), tuple(sorted(keys)[:_MAX_KEYS])))
