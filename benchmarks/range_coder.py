"""Time the range coder against tensorflow-compression's, constriction's and CompressAI's, on one core.

`z_hat` is what frozen models make of real videos, one model for each rate; without models, it is made up after theirs,
sparse and with long tails. All coders get the same tables and values, and one string a video is asked of each.
tensorflow-compression's strings must be equal to ours. Times are CPU times; the coders take turns.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import workload
from results import Report, parser

from vidpress.model.coding import range_coder
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.tables.bits import bits_by_row
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.pipeline.launching import machine

TARGET = 4.0
# The others take a call, and lists of Python integers, for each video: fewer will do.
FEW_VIDEOS = 128


class Coder(NamedTuple):
    """A coder at work on given values.

    Attributes:
      encode: Encodes all videos.
      decode: Decodes them.
      num_videos: How many they are.
      num_bytes: Of their codes.
    """

    encode: Callable[[], object]
    decode: Callable[[], object]
    num_videos: int
    num_bytes: int


def made_up(num_videos: int, nonzero: float, num_dims: int = 2000) -> tuple[RangeCodingTables, np.ndarray]:
    """Return tables, and int32[num_videos, num_dims] like a bottleneck's of which a share is not zero."""
    tables = RangeCodingTables.fit(_make_z_hat(20000, num_dims, nonzero, seed=2))
    return tables, _make_z_hat(num_videos, num_dims, nonzero, seed=1)


def _make_z_hat(num_videos: int, num_dims: int, mean_nonzero: float, seed: int) -> np.ndarray:
    """Make values: how often each dimension is not 0 is log-normal, its values geometric."""
    per_dim = np.random.default_rng(0)
    rate = np.exp(per_dim.normal(0, 1.8, num_dims))
    # The scale at which, capped, the rates have the wanted mean.
    low, high = 0.0, 1.0
    for _ in range(50):
        scale = (low + high) / 2
        low, high = (scale, high) if np.minimum(scale * rate, 0.8).mean() < mean_nonzero else (low, scale)
    rate = np.minimum(scale * rate, 0.8)
    stop = 1 - per_dim.uniform(0.05, 0.5, num_dims)
    rng = np.random.default_rng(seed)
    z_hat = np.zeros((num_videos, num_dims), np.int32)
    for row in z_hat:
        dims = np.flatnonzero(rng.random(num_dims) < rate)
        row[dims] = rng.geometric(stop[dims])
    return z_hat


def vidpress_coder(tables: RangeCodingTables, z_hat: np.ndarray) -> Coder:
    """Return our coder; with banks, choosing them is part of encoding."""

    def encode() -> range_coder.EncodedRows:
        return range_coder.encode_cheapest(tables, z_hat)

    data, offsets, bank = encode()

    def decode() -> np.ndarray:
        return range_coder.decode(tables, data, offsets, bank=bank)

    _check(decode(), z_hat, "vidpress")
    return Coder(encode, decode, len(z_hat), len(data))


def tensorflow_coder(tables: RangeCodingTables, z_hat: np.ndarray) -> Coder:
    """Return tensorflow-compression's coder; its strings must be equal to ours."""
    import tensorflow as tf
    import tensorflow_compression as tfc

    entropy_model = tfc.ContinuousBatchedEntropyModel(
        prior_shape=[tables.num_dims],
        coding_rank=1,
        compression=True,
        cdf=tables.lookup,
        cdf_offset=tables.cdf_offset,
        range_coder_precision=tables.precision,
        offset_heuristic=False,
    )
    z = tf.constant(z_hat, tf.float32)
    strings = entropy_model.compress(z)
    if list(strings.numpy()) != range_coder.compress(tables, z_hat):
        raise SystemExit("tensorflow-compression's codes differ from ours.")
    _check(entropy_model.decompress(strings, []).numpy(), z_hat, "tensorflow-compression")
    return Coder(
        lambda: entropy_model.compress(z),
        lambda: entropy_model.decompress(strings, []),
        len(z_hat),
        sum(map(len, strings.numpy())),
    )


def constriction_coder(tables: RangeCodingTables, z_hat: np.ndarray, kind: str) -> Coder:
    """Return constriction's range coder ("queue") or ANS coder ("stack"), for values without escapes."""
    import constriction

    num_symbols = np.diff(tables.cdf_start) - 1
    probabilities = np.zeros((tables.num_dims, num_symbols.max()), np.float32)
    for dim, (begin, end) in enumerate(itertools.pairwise(tables.cdf_start)):
        probabilities[dim, : end - begin - 1] = np.diff(tables.cdf[begin:end]) / 2.0**tables.precision
    family = constriction.stream.model.Categorical(perfect=False)
    symbols = np.ascontiguousarray(z_hat[:FEW_VIDEOS] - tables.cdf_offset, np.int32)
    # An escape is coded without the distance that should follow.
    symbols = np.where((symbols < 0) | (symbols >= num_symbols), num_symbols - 1, symbols).astype(np.int32)

    def encode() -> list[np.ndarray]:
        codes = []
        for row in symbols:
            if kind == "queue":
                encoder = constriction.stream.queue.RangeEncoder()
                encoder.encode(row, family, probabilities)
            else:
                encoder = constriction.stream.stack.AnsCoder()
                encoder.encode_reverse(row, family, probabilities)
            codes.append(encoder.get_compressed())
        return codes

    codes = encode()

    def decode() -> list[np.ndarray]:
        make = constriction.stream.queue.RangeDecoder if kind == "queue" else constriction.stream.stack.AnsCoder
        return [make(code).decode(family, probabilities) for code in codes]

    _check(np.stack(decode()), symbols, "constriction")
    return Coder(encode, decode, len(symbols), sum(code.nbytes for code in codes))


def compressai_coder(tables: RangeCodingTables, z_hat: np.ndarray) -> Coder:
    """Return CompressAI's rANS coder; it is loaded without PyTorch, which the rest of the package needs."""
    package = importlib.util.find_spec("compressai")
    if package is None or not package.submodule_search_locations:
        raise ImportError("compressai is not installed")
    spec = importlib.machinery.PathFinder.find_spec("compressai.ans", list(package.submodule_search_locations))
    if spec is None or spec.loader is None:
        raise ImportError("compressai has no rANS coder")
    ans = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ans)

    cdfs = [tables.cdf[begin:end].tolist() for begin, end in itertools.pairwise(tables.cdf_start)]
    rest = (list(range(tables.num_dims)), cdfs, list(map(len, cdfs)), tables.cdf_offset.tolist())
    rows = z_hat[:FEW_VIDEOS].tolist()

    def encode() -> list[bytes]:
        encoder = ans.RansEncoder()
        return [encoder.encode_with_indexes(row, *rest) for row in rows]

    codes = encode()

    def decode() -> list[list[int]]:
        decoder = ans.RansDecoder()
        return [decoder.decode_with_indexes(code, *rest) for code in codes]

    _check(np.array(decode()), z_hat[:FEW_VIDEOS], "CompressAI")
    return Coder(encode, decode, len(rows), sum(map(len, codes)))


def _check(decoded: np.ndarray, z_hat: np.ndarray, name: str) -> None:
    if not np.array_equal(decoded, z_hat):
        raise SystemExit(f"The codes of {name} do not decode to what was coded.")


def coders(tables: RangeCodingTables, z_hat: np.ndarray, report: Report) -> dict[str, Coder]:
    """Return all coders that are installed."""
    shared = tables.shared
    makers: dict[str, Callable[[], Coder]] = {
        "vidpress": lambda: vidpress_coder(shared, z_hat),
        "tensorflow-compression": lambda: tensorflow_coder(shared, z_hat),
        "constriction, range": lambda: constriction_coder(shared, z_hat, "queue"),
        "constriction, ANS": lambda: constriction_coder(shared, z_hat, "stack"),
        "CompressAI, rANS": lambda: compressai_coder(shared, z_hat),
    }
    if tables.num_banks > 1:
        makers[f"vidpress, {tables.num_banks} banks"] = lambda: vidpress_coder(tables, z_hat)
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            note = f"{name} is left out: {error}."
            if note not in report.notes:
                report.note(note)
    return found


def seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of a call, all threads counted: other processes on the machine are not."""
    start = time.process_time()
    function()
    return time.process_time() - start


def measure(report: Report, name: str, tables: RangeCodingTables, z_hat: np.ndarray, turns: int) -> None:
    """Let the coders take turns on some values."""
    found = coders(tables, z_hat, report)
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(turns + 1):
        for coder_name, coder in found.items():
            for way in ("encode", "decode"):
                taken = seconds(getattr(coder, way)) / coder.num_videos
                if turn:
                    times.setdefault((way, coder_name), []).append(taken)
    bits = bits_by_row(tables.shared, z_hat).mean()
    label = f"{name}, {np.mean(z_hat != 0):.1%} not 0, {bits / 8:.1f} bytes of information"
    for way in ("encode", "decode"):
        cells = {coder: [z_hat.shape[1] / s / 1e6 for s in times[way, coder]] for coder in found}
        report.row(f"{label}: {way}, M symbols/s", cells)
        ours, theirs = (np.array(times[way, coder]) for coder in ("vidpress", "tensorflow-compression"))
        report.target(f"range {way} against tensorflow-compression, {name}", TARGET, float(np.median(theirs / ours)))
        banks = f"vidpress, {tables.num_banks} banks"
        if banks in found:
            ratio = float(np.median(theirs / np.array(times[way, banks])))
            report.target(f"range {way} with {tables.num_banks} banks against the same, {name}", TARGET, ratio)
    report.row(
        f"{label}: bytes a code", {name: coder.num_bytes / coder.num_videos for name, coder in found.items()}, ".1f"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    command_line = parser(__doc__, repeats=15)
    command_line.add_argument("--num_videos", type=int, default=4096, help="(default: %(default)s)")
    command_line.add_argument("--model", nargs="+", default=[], help="frozen models, one for each rate")
    command_line.add_argument("--input", help="video-level TFRecords for the models, a pattern (default: YouTube-8M's)")
    args = command_line.parse_args(argv)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(machine.describe(), flush=True)
    report = Report("The coder alone, on one core")
    report.note(f"CPU time, {args.repeats} turns after one to warm up; {args.num_videos:,} videos.")
    report.note(
        f"constriction and CompressAI take a call for each video, {FEW_VIDEOS} here; constriction codes no escapes' "
        "distances, and writes words of 32 bits."
    )
    values: dict[str, Any] = {}
    if args.model:
        source, videos = workload.real_videos(args.input, args.num_videos)
        report.note(f"z_hat of {source}.")
        x = np.stack([video.x for video in videos])
        for path in args.model:
            model = FrozenModel.load(path)
            values[f"lmbda {model.metadata.get('lmbda')}"] = model.tables, model.quantize(x)
    else:
        report.note("MADE-UP z_hat: name models with --model for that of real videos.")
        for nonzero in (0.03, 0.08, 0.2):
            values[f"made up, {nonzero:.0%}"] = made_up(args.num_videos, nonzero)
    for name, (tables, z_hat) in values.items():
        measure(report, name, tables, z_hat, args.repeats)
    report.finish(args)


if __name__ == "__main__":
    main()
