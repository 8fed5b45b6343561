"""What a data set promises, as a machine that Hypothesis drives: writers, compactions, readers, losses, kills anywhere.

Whatever happens in which order: the newest generation holds every video of every input file that a run was said to have
added, once, with its own features; who opened an earlier generation goes on reading that, until it is expired; and
nothing that any manifest lists is ever removed.
"""

import functools
import json
import os
import pathlib
import signal
import tempfile

import numpy as np
from conftest import SPEC, forked, frame_level, random_model, write_records
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vidpress.model.data_set.compaction import is_compact
from vidpress.model.data_set.manifest import Manifest, manifest_numbers, oldest_kept
from vidpress.model.data_set.verification import verify
from vidpress.model.files import storage
from vidpress.model.files.file_names import generation_of, is_part_name, join, manifest_name
from vidpress.model.reading.video_dataset import VideoDataset
from vidpress.model.records.videos import parse_video, pool_frames
from vidpress.pipeline import compact, encode

MODEL = random_model(SPEC)
MAX_INDEX = 60


@functools.cache
def features_of(index: int) -> tuple[bytes, bytes]:
    video = pool_frames(parse_video(frame_level(index), SPEC), SPEC)
    return video.id, MODEL.quantize(video.x[None])[0].astype(np.float32).tobytes()


def content(dataset: VideoDataset) -> dict[bytes, bytes]:
    """The features of a data set by id; an id that comes twice fails."""
    found = {}
    for ids, _, features in dataset:
        for video_id, values in zip(ids, features, strict=True):
            assert video_id not in found
            found[video_id] = values.tobytes()
    return found


class DataSetMachine(RuleBasedStateMachine):
    """A folder of input files, a data set, and those who read it.

    Sub-classes say where the data set is, and the functions at whose calls a process may die.
    """

    points: tuple[tuple[object, str], ...]

    def new_output(self) -> str:
        """Return the path or URI of a folder that is not there yet."""
        raise NotImplementedError

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.input = pathlib.Path(self.folder.name, "input")
        self.input.mkdir()
        self.model = str(pathlib.Path(self.folder.name, "model.safetensors"))
        MODEL.save(self.model)
        self.output = self.new_output()
        self.inputs: dict[str, set[int]] = {}
        self.added: set[int] = set()
        self.generations = 0
        self.readers: list[tuple[VideoDataset, dict[bytes, bytes]]] = []

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def run(self, *options: str, input: str = "*") -> None:
        encode.main(
            ["--append", "--input", f"{self.input}/{input}", "--model", self.model, "--output", self.output, *options]
        )

    def compact(self, *options: str) -> None:
        compact.main([self.output, *options])

    def started(self, die_at: tuple[int, int] | None, run):
        """Start a run in a process of its own, which dies at the n-th call of one of the points, before or after it."""

        def target():
            if die_at is not None:
                owner, name = self.points[die_at[0] % len(self.points)]
                function, calls = getattr(owner, name), []

                def die(*args, **kwargs):
                    calls.append(None)
                    late = die_at[1] % 2
                    if len(calls) == 1 + die_at[1] // 2 and not late:
                        os.kill(os.getpid(), signal.SIGKILL)
                    result = function(*args, **kwargs)
                    if len(calls) == 1 + die_at[1] // 2 and late:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return result

                setattr(owner, name, die)
            run()

        process = forked(target)
        return process

    def was_there(self) -> int:
        """Return the newest generation, and see that none is gone that was there."""
        newest = max(manifest_numbers(self.output), default=0)
        assert newest >= self.generations
        return newest

    def note_what_was_added(self) -> None:
        """Take from the manifest's own lists which files count as added now."""
        newest = self.was_there()
        if newest > self.generations:
            self.generations = newest
            files = set()
            for generation in filter(lambda each: each.inputs, Manifest.load(self.output).generations):
                lines = storage.read_bytes(join(self.output, generation.inputs.name)).splitlines()
                files |= {json.loads(line)["file"] for line in lines}
            for name, indices in self.inputs.items():
                if str(self.input / name) in files:
                    self.added |= indices

    @rule(indices=st.sets(st.integers(0, MAX_INDEX - 1), min_size=1, max_size=12))
    def a_file_comes(self, indices):
        name = f"day{len(self.inputs):03d}"
        write_records(self.input / name, [frame_level(index) for index in sorted(indices)])
        self.inputs[name] = indices

    @precondition(lambda self: self.inputs)
    @rule(num_shards=st.integers(1, 4))
    def append(self, num_shards):
        before = self.generations
        self.run("--num_shards", str(num_shards))
        self.note_what_was_added()
        assert self.generations <= before + 1
        assert self.added == set().union(*self.inputs.values())

    @precondition(lambda self: self.inputs)
    @rule(num_shards=st.integers(1, 4), point=st.integers(0, 9), call=st.integers(0, 15))
    def append_and_die(self, num_shards, point, call):
        process = self.started((point, call), lambda: self.run("--num_shards", str(num_shards)))
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        self.note_what_was_added()

    @precondition(lambda self: self.generations)
    @rule(num_shards=st.integers(1, 4))
    def compact_all(self, num_shards):
        needed = not is_compact(Manifest.load(self.output))
        self.compact("--num_shards", str(num_shards))
        assert self.was_there() == self.generations + needed
        self.note_what_was_added()

    @precondition(lambda self: self.generations > 1)
    @rule(point=st.integers(0, 9), call=st.integers(0, 15), expire=st.booleans())
    def compact_and_die(self, point, call, expire):
        options = ["--expire", "0"] if expire else ["--num_shards", "3"]
        process = self.started((point, call), lambda: self.compact(*options))
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        self.note_what_was_added()
        if expire:
            self.readers_leave()

    @precondition(lambda self: self.generations > 1)
    @rule()
    def expire(self):
        self.compact("--expire", "0")
        self.readers_leave()
        newest = Manifest.load(self.output)
        assert min(manifest_numbers(self.output)) >= newest.newest_compaction

    def readers_leave(self) -> None:
        """Those of generations that were expired; that they have to is what --expire says."""
        compaction = Manifest.load(self.output).newest_compaction
        self.readers = [each for each in self.readers if each[0].generation >= compaction]

    @precondition(lambda self: self.generations > 1)
    @rule(one=st.integers(0, 10))
    def append_and_compact_at_once(self, one):
        """One of them may fail; of what it wrote nothing counts."""
        name = sorted(self.inputs)[one % len(self.inputs)]
        processes = [self.started(None, lambda: self.run(input=name)), self.started(None, self.compact)]
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert codes in ([0, 0], [0, 1], [1, 0])
        self.note_what_was_added()
        assert codes[0] or self.inputs[name] <= self.added

    @precondition(lambda self: self.inputs)
    @rule(one=st.integers(0, 10), other=st.integers(0, 10))
    def two_append_at_once(self, one, other):
        """Of two that add different files, one fails; of what it wrote nothing counts."""
        names = sorted(self.inputs)
        chosen = [names[number % len(names)] for number in (one, other)]
        processes = [self.started(None, functools.partial(self.run, input=name)) for name in chosen]
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert set(codes) <= {0, 1}
        assert 0 in codes
        before = set(self.added)
        self.note_what_was_added()
        for code, name in zip(codes, chosen, strict=True):
            if code == 0:
                assert self.inputs[name] <= self.added
        assert self.added <= before | self.inputs[chosen[0]] | self.inputs[chosen[1]]

    @precondition(lambda self: self.generations)
    @rule(older=st.integers(0, 3))
    def a_reader_comes(self, older):
        generation = max(self.generations - older, 1)
        if generation in manifest_numbers(self.output):
            dataset = VideoDataset(self.output, batch_size=7, generation=generation)
            assert dataset.generation == generation
            self.readers.append((dataset, content(dataset)))

    @precondition(lambda self: self.generations > 1)
    @rule(which=st.integers(0, 10))
    def a_manifest_is_lost(self, which):
        generation = 1 + which % (self.generations - 1)
        storage.remove([join(self.output, manifest_name(generation))])
        # Shards that were compacted since are listed by no other manifest, and go as leftovers do.
        self.readers = [each for each in self.readers if each[0].generation != generation]

    @rule()
    def a_day_passes(self):
        """What is there is old enough now to be taken for a leftover."""
        self.grow_old()

    def grow_old(self) -> None:
        raise NotImplementedError

    @invariant()
    def the_newest_generation_holds_what_was_added(self):
        if getattr(self, "generations", 0):
            expected = dict(map(features_of, self.added))
            assert content(VideoDataset(self.output, batch_size=9)) == expected
            manifest = Manifest.load(self.output)
            assert manifest.counts.videos == len(expected)
            assert manifest.counts.unaccounted == 0
            there = {file.name for file in storage.list_files(self.output)}
            assert {entry.name for entry in manifest.files} <= there

    @invariant()
    def readers_go_on_with_what_they_opened(self):
        for dataset, expected in getattr(self, "readers", []):
            assert content(dataset) == expected

    @invariant()
    def verify_finds_nothing_but_what_was_lost(self):
        if getattr(self, "generations", 0):
            report = verify(self.output, sample=4)
            numbers = manifest_numbers(self.output)
            lost = set(range(oldest_kept(report.manifest, numbers), self.generations)) - numbers
            assert len(report.findings) == len(lost)
            assert all("is lost" in finding for finding in report.findings)


class LocalMachine(DataSetMachine):
    """On a local disk, where a process may die at each call that changes it."""

    points = ((os, "replace"), (os, "link"), (os, "fsync"), (os, "remove"))

    def new_output(self):
        return str(pathlib.Path(self.folder.name, "out"))

    def grow_old(self):
        if os.path.isdir(self.output):
            for path in pathlib.Path(self.output).iterdir():
                os.utime(path, (0, 0))


class UnlistedFilesMachine(LocalMachine):
    """As `LocalMachine`, and at the end one more run cleans up all that those that died left."""

    def teardown(self):
        if getattr(self, "generations", 0):
            self.a_file_comes({0})
            self.grow_old()
            self.append(1)
            names = {file.name for file in storage.list_files(self.output)}
            manifest = Manifest.load(self.output)
            numbers = manifest_numbers(self.output)
            listed = {entry.name for number in numbers for entry in Manifest.load(self.output, number).files}
            manifests = set(map(manifest_name, numbers))
            later = {name for name in names - listed if is_part_name(name)}
            assert names - listed - manifests <= later
            # A list of input files says that all was there but the manifest, which may have been lost: it stays.
            complete = {generation_of(name) for name in later if name.startswith("inputs-")}
            assert all(
                generation_of(name) > manifest.generation for name in later if generation_of(name) not in complete
            )
        super().teardown()
