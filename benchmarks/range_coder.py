"""Time the range coder against tensorflow-compression's, on one core and on the same codes.

`z_hat` is made up after those of trained bottlenecks, sparse and with long tails, or computed by a model from real
records. Both coders take turns; the medians of their rates and the ratio are printed. The codes must be equal.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vidpress.model import range_coder
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen_model import FrozenModel
from vidpress.model.range_coding_tables import RangeCodingTables
from vidpress.model.tfrecord import read_tfrecords
from vidpress.model.videos import parse_video, pool_frames
from vidpress.pipeline.machine import describe


def make_z_hat(num_videos: int, num_dims: int, mean_nonzero: float, seed: int) -> np.ndarray:
    """Return int32[num_videos, num_dims]: how often each dimension is not 0 is log-normal, its values geometric."""
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


def read_z_hat(model_path: str, pattern: str, num_videos: int) -> tuple[RangeCodingTables, np.ndarray]:
    """Return a model's tables, and what it makes of the first videos of TFRecord files.

    Of a model with banks of tables, they are the shared ones: tensorflow-compression has no banks.
    """
    model = FrozenModel.load(model_path)
    x = list(itertools.islice(_inputs(pattern, model.spec), num_videos))
    if not x:
        raise SystemExit(f"{pattern} names no file with records.")
    return model.tables.shared, model.quantize(np.stack(x))


def _inputs(pattern: str, spec: FeatureSpec) -> Iterator[np.ndarray]:
    for path in sorted(glob.glob(pattern)):
        with open(path, "rb") as file:
            for _, payload in read_tfrecords(file):
                if isinstance(payload, bytes):
                    yield pool_frames(parse_video(payload, spec), spec).x


def seconds(function: Callable[[], object]) -> float:
    """Return the CPU time of a call, all threads counted: other processes on the machine are not."""
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], turns: int, size: tuple[int, ...]
) -> None:
    """Run both by turns and print their rates."""
    ours(), theirs()
    times = np.array([(seconds(ours), seconds(theirs)) for _ in range(turns)])
    rates = [size[0] / statistics.median(column) for column in times.T]
    ratio = statistics.median(times[:, 1] / times[:, 0])
    columns = "".join(f"{rate:14,.0f} {rate * size[1] / 1e6:12,.0f}" for rate in rates)
    print(f"{name:8}{columns}{ratio:9.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_videos", type=int, default=4096, help="(default: %(default)s)")
    parser.add_argument("--num_dims", type=int, default=2000, help="of made-up z_hat (default: %(default)s)")
    parser.add_argument("--nonzero", type=float, default=0.08, help="share of made-up z_hat (default: %(default)s)")
    parser.add_argument("--precision", type=int, default=16, help="of the tables (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=15, help="of each coder (default: %(default)s)")
    parser.add_argument("--model", help="a frozen model; takes its tables, and z_hat of --input")
    parser.add_argument("--input", help="TFRecord files for --model, a pattern")
    args = parser.parse_args(argv)
    if bool(args.model) != bool(args.input):
        parser.error("--model and --input go together")

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf
    import tensorflow_compression as tfc

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(describe())

    if args.model:
        tables, z_hat = read_z_hat(args.model, args.input, args.num_videos)
        source = f"{args.model} on {args.input}"
    else:
        z_hat = make_z_hat(args.num_videos, args.num_dims, args.nonzero, seed=1)
        tables = RangeCodingTables.fit(make_z_hat(20000, args.num_dims, args.nonzero, seed=2), args.precision)
        source = "made up; tables fitted to 20,000 others"
    entropy_model = tfc.ContinuousBatchedEntropyModel(
        prior_shape=[tables.num_dims],
        coding_rank=1,
        compression=True,
        cdf=tables.lookup,
        cdf_offset=tables.cdf_offset,
        offset_heuristic=False,
    )
    z = tf.constant(z_hat, tf.float32)
    strings = entropy_model.compress(z)
    data, offsets = range_coder.encode(tables, z_hat)
    codes = [data[begin:end].tobytes() for begin, end in itertools.pairwise(offsets)]
    if codes != list(strings.numpy()):
        raise SystemExit("The codes differ.")
    decoded = range_coder.decode(tables, data, offsets)
    if not ((decoded == z_hat).all() and (entropy_model.decompress(strings, []).numpy() == z_hat).all()):
        raise SystemExit("The codes do not decode to z_hat.")

    bits = tables.bits(z_hat).mean()
    print(
        f"z_hat {z_hat.shape[0]:,} x {z_hat.shape[1]:,} ({source}), {np.mean(z_hat == 0):.1%} zeros, precision "
        f"{tables.precision}: {bits:,.1f} bits a video, codes of {len(data) / len(z_hat):,.2f} bytes "
        f"({len(data) * 8 / len(z_hat) / bits - 1:+.2%}), equal"
    )
    print(f"one core; medians of {args.turns} turns, by CPU time\n")
    print(f"{'':8}{'vidpress':>27}{'tensorflow-compression':>27}{'ratio':>9}")
    print(f"{'':8}" + 2 * f"{'videos/s':>14} {'M symbols/s':>12}")
    turns, size = args.turns, z_hat.shape
    compare("encode", lambda: range_coder.encode(tables, z_hat), lambda: entropy_model.compress(z), turns, size)
    compare(
        "decode",
        lambda: range_coder.decode(tables, data, offsets),
        lambda: entropy_model.decompress(strings, []),
        turns,
        size,
    )


if __name__ == "__main__":
    main()
