"""Compile every loop that encoding and decoding run, and keep the machine code: `python -m vidpress.model.warm_up`.

Without it, the first process on a machine compiles for seconds before its first record. An image should contain the
files that this writes beside the modules, or in the folder that NUMBA_CACHE_DIR names.

Machine code is kept for one kind of processor, down to each feature. For an image that runs on several, compile for
what they have in common, as in `python -m vidpress.model.warm_up "x86-64-v3 x86-64-v4+amx-tile+amx-bf16"`: the names of
processors in LLVM, and features that they have besides. A process finds this machine code if its NUMBA_CPU_NAME and
NUMBA_CPU_FEATURES are those of `numba_variables`. The processor that compiles need not be one of them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vidpress.model.coding import coder_loops
from vidpress.model.data_set.rows import encode_videos
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen import matrix_units
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.numba_internals import Loop
from vidpress.model.records.examples import RecordError, serialize_record
from vidpress.model.records.synthetic import serialize_video
from vidpress.model.records.videos import parse_video, pool_frames
from vidpress.model.shards.shard import Shard
from vidpress.model.shards.shard_header import ShardHeader
from vidpress.model.shards.shard_rows import decode_codes
from vidpress.model.shards.shard_writer import write_shard
from vidpress.model.shards.sorted_ids import SortedIds
from vidpress.model.tables.banks import fit_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables


def warm_up() -> None:
    """Encode and decode two made-up videos, by networks with two units whose activations are always a half."""
    spec = FeatureSpec.parse("rgb:512,audio:1")  # enough inputs to be summed in parts
    layers = tuple(
        (np.zeros((size_in, 1), np.float32), np.full(1, 0.5, np.float32)) for size_in in (spec.input_size, 1)
    )
    values = np.array([[0], [1], [0]], np.int32)
    tables = fit_banks(RangeCodingTables.fit(values), values, 2)
    videos = []
    for num_frames in (1, 2):  # a single frame has no gaps in the record, which is another type to the compiler
        frames = np.ones((num_frames, spec.input_size), np.uint8)
        payload = serialize_video(b"id", np.array([1]), frames, spec)
        videos.append(pool_frames(parse_video(payload, spec), spec))
    _read_odd_records()
    for rounds_every_layer in (False, True):
        model = FrozenModel(spec, layers, tables, rounding_lmbda=0.03, rounds_every_layer=rounds_every_layer, top_k=1)
        # Read back, since loops are compiled again for arrays that cannot be written.
        model = FrozenModel.from_bytes(model.to_bytes())
        rows = pa.Table.from_batches([encode_videos(model, videos).rows])
        file = io.BytesIO()
        write_shard(file, rows, ShardHeader(model.model_id, spec, model.tables))
        stored = Shard(file, "a shard").read(0)
        decode_codes(stored, model.tables)
        ids = SortedIds(stored["id"])
        ids.places(ids, 0, stored.num_rows)


def _read_odd_records() -> None:
    """Read float frames, an id that is encoded in an unusual way, and frames that become dead letters."""
    frames = {"rgb": np.ones((2, 2), np.float32)}
    payload = serialize_record({"id": b"x" * 200}, frames)
    spec = FeatureSpec.parse("rgb:2:float")
    pool_frames(parse_video(payload, spec), spec)
    with contextlib.suppress(RecordError):
        parse_video(payload, FeatureSpec.parse("rgb:2"))


def signatures() -> dict[tuple[str, str], list[Any]]:
    """Return for which types this process has compiled each loop, by its module and name.

    On another kind of processor, it would have compiled the range coder's other loops for the same types.
    """
    found = {
        (module.__name__, name): list(value.signatures)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("vidpress.")
        for name, value in vars(module).items()
        if isinstance(value, Loop) and value.py_func.__module__ == module.__name__
    }
    for loops in zip(coder_loops.LANES, coder_loops.ROW_BY_ROW, strict=True):
        types = [signature for loop in loops for signature in loop.signatures]
        found |= {(loop.__module__, loop.__name__): types for loop in loops}
    return found


def numba_variables(kind: str) -> dict[str, str]:
    """Return the environment in which Numba compiles for a kind of processor, such as 'x86-64-v4+amx-tile'."""
    name, *features = kind.split("+")
    return {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in features)}


def compile_for(kind: str, loops: Mapping[tuple[str, str], Sequence[Any]]) -> None:
    """Compile loops for a kind of processor without running any, in another process: Numba reads its settings once."""
    program = (
        "import pickle, sys\n"
        "from vidpress.model.warm_up import compile_loops\n"
        "compile_loops(*pickle.load(sys.stdin.buffer))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((loops, "+amx-" in kind)),
        env={**os.environ, **numba_variables(kind)},
        check=True,
    )


def compile_loops(loops: Mapping[tuple[str, str], Sequence[Any]], has_matrix_units: bool) -> None:
    """Compile loops, by module and name, for the types that are given; and those for matrix units, if there are any."""
    for (module, name), types in loops.items():
        if module == matrix_units.__name__ and not has_matrix_units:
            continue  # this processor has them, and compiled them; the other kind cannot
        for signature in types:
            getattr(importlib.import_module(module), name).compile(signature)
    if has_matrix_units:
        matrix_units.compile_ahead()


def main(kinds: Sequence[str]) -> None:
    """Compile for this processor, and for the kinds that are named."""
    warm_up()
    loops = signatures()
    for kind in kinds:
        compile_for(kind, loops)


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]).split())
