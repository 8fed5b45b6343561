"""Freezing: from a trained network to the model that encodes, without TensorFlow."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import threadpoolctl

from vidpress.model.coding import range_coder
from vidpress.model.cpus import num_cpus
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen import dense_layers
from vidpress.model.frozen.frozen_model import FrozenModel, Layer, Layers, UncodableError
from vidpress.model.frozen.input_decoder import fit_input_decoder
from vidpress.model.frozen.nearest_rounding import fit_steps
from vidpress.model.metrics import MetricsAccumulator, deflated_bytes
from vidpress.model.networks import classifiers
from vidpress.model.networks.bottleneck import bottleneck_of
from vidpress.model.tables.banks import fit_banks
from vidpress.model.tables.bits import bits_by_row
from vidpress.model.tables.range_coding_tables import RangeCodingTables
from vidpress.model.tables.symbol_counts import SymbolCounts, count_symbols
from vidpress.model.training.options import FreezingOptions
from vidpress.model.training.training_data import LabelledVideos, TrainingDataError

# Videos taken through the network at a time.
_CHUNK = 2048

# Banks of tables, and decoders of the input, are fitted to at most this many videos: 800 MB with 2000 dimensions.
_BANK_VIDEOS = 100_000
_DECODER_VIDEOS = 100_000

# Activations of a linear bottleneck may be this many times as far below 0 as those of a sample, and keep their value.
_MARGIN = 1.5

# The search for a rate ends within this share below the wanted bytes, or after this many trials.
_BYTES_TOLERANCE = 0.01
_MAX_TRIALS = 12


def fold_batch_norm(
    network: keras.Model,
) -> tuple[tuple[tuple[np.ndarray, np.ndarray], ...], tuple[np.ndarray, np.ndarray]]:
    """Return the weights of a network of `classifiers.build_network`, batch normalisation folded into the kernels.

    `gamma * (x @ kernel - mean) / sqrt(variance + epsilon) + beta` is `x @ (kernel * scale) + (beta - mean * scale)`
    with `scale = gamma / sqrt(variance + epsilon)`. In a network for many rates, the scales and shifts at the selected
    lmbda are folded in as well. Products are in float64, and rounded once.

    Returns:
      `(hidden, head)`: `(kernel float32[in, out], bias float32[out])` of each hidden layer, and the same of the logits.
    """
    hidden = []
    for index, (dense, batch_norm) in enumerate(classifiers.hidden_layers(network)):
        gamma, beta, mean, variance = (_float64(weight) for weight in batch_norm.weights)
        outer_scale, shift = classifiers.rate_affine(network, index)
        scale = outer_scale * gamma / np.sqrt(variance + batch_norm.epsilon)
        kernel, bias = _float64(dense.kernel) * scale, outer_scale * beta - mean * scale + shift
        hidden.append((kernel.astype(np.float32), bias.astype(np.float32)))
    logits = network.get_layer(classifiers.LOGITS)
    kernel, bias = _float64(logits.kernel), _float64(logits.bias)
    input_scale, input_shift = classifiers.rate_affine(network, classifiers.BOTTLENECK)
    output_scale, output_shift = classifiers.rate_affine(network, classifiers.LOGITS)
    bias = (bias + np.sum(kernel.T * input_shift, axis=1)) * output_scale + output_shift
    kernel = (kernel.T * input_scale).T * output_scale
    return tuple(hidden), (kernel.astype(np.float32), bias.astype(np.float32))


def _shift(hidden: Layers, x: np.ndarray) -> np.ndarray:
    """Return integers, float32[num_dims], that make the activations of a linear bottleneck positive.

    A frozen model has a ReLU after each layer. To change nothing, it must not see a negative number.
    """
    *lower, (kernel, bias) = hidden
    activations = x
    for layer in lower:
        activations = dense_layers.dense(activations, *layer)
    lowest = (activations @ kernel + bias).min(axis=0)
    return (np.ceil(np.maximum(-_MARGIN * lowest, 0)) + 1).astype(np.float32)


def _shifted(hidden: Layers, head: Layer, shift: np.ndarray) -> tuple[Layers, Layer]:
    """Return the layers with activations that are larger by `shift`, and the head that takes it away."""
    *lower, (kernel, bias) = hidden
    head_kernel, head_bias = head
    return (*lower, (kernel, bias + shift)), (head_kernel, head_bias - shift @ head_kernel)


def _prior_tables(network: keras.Model, shift: np.ndarray) -> RangeCodingTables:
    bottleneck = bottleneck_of(network)
    if bottleneck is None:
        raise ValueError("A network trained with lmbda=0 has no prior: use empirical tables.")
    tables = bottleneck.tables()
    return dataclasses.replace(tables, cdf_offset=tables.cdf_offset + shift.astype(np.int32))


def _float64(variable: keras.Variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def freeze(
    network: keras.Model,
    spec: FeatureSpec,
    videos: LabelledVideos,
    options: FreezingOptions,
    *,
    metadata: dict[str, Any] | None = None,
) -> FrozenModel:
    """Freeze a trained network.

    Args:
      network: A network of `classifiers.build_network`.
      spec: What `x` is made of.
      videos: The training data, for the tables.
      options: How to freeze it. If rounding takes the bits into account, tables are fitted twice: first to the nearest
        integers, and then to what is rounded with the first tables.
      metadata: JSON values that say where the model comes from.

    Returns:
      The model, with its task head.

    Raises:
      ValueError: If there is no prior to take tables from, if a weight is not finite, if that many banks cannot be
        fitted, or if `top_k` is too large or the bottleneck linear.
    """
    if options.top_k and not classifiers.has_last_relu(network):
        raise ValueError("top_k cannot be used with a linear bottleneck: there, 0 does not stand for what is absent.")
    hidden, head = fold_batch_norm(network)
    sample = videos.x[_evenly(len(videos), _CHUNK)]
    shift = np.zeros(len(hidden[-1][1]), np.float32)
    if not classifiers.has_last_relu(network):
        shift = _shift(hidden, sample)
        hidden, head = _shifted(hidden, head, shift)
    hidden = fit_steps(hidden, sample)
    num_dims = len(hidden[-1][1])
    unfitted = RangeCodingTables.from_pmf([np.ones(1)] * num_dims, np.zeros(num_dims, np.int32))
    model = FrozenModel(
        spec, hidden, unfitted, head, metadata=metadata or {}, rounds_every_layer=True, top_k=options.top_k
    )
    of_prior = _prior_tables(network, shift) if options.tables == "prior" else None
    for cost in (0.0, options.rounding_lmbda) if options.rounding_lmbda else (0.0,):
        model = dataclasses.replace(model, rounding_lmbda=cost)
        fitted = of_prior or RangeCodingTables.fit(count_z_hat(model, videos))
        if options.banks != 1:
            fitted = fit_banks(fitted, _sample_z_hat(model, videos), options.banks)
        model = dataclasses.replace(model, tables=fitted)
    return model


def with_decoder(model: FrozenModel, videos: LabelledVideos) -> FrozenModel:
    """Return the model with a decoder of its input, fitted to evenly spaced videos of the training data."""
    rows = _evenly(len(videos), _DECODER_VIDEOS)
    chunks = np.array_split(rows, -(-len(rows) // _CHUNK))
    parts = _run_in_threads(lambda chunk: (_quantize(model, videos, chunk), videos.x[chunk]), chunks)
    return dataclasses.replace(model, decoder=fit_input_decoder(parts))


def find_lmbda(bytes_at: Callable[[float], float], lmbda_range: tuple[float, float], num_bytes: float) -> float:
    """Return nearly the lowest lmbda at which a video takes at most `num_bytes` bytes.

    The logarithm of the bytes is nearly linear in that of lmbda, so few values have to be tried.

    Args:
      bytes_at: Returns the bytes at an lmbda. They fall as lmbda rises.
      lmbda_range: The lowest and the highest lmbda.
      num_bytes: How many bytes are wanted; up to 1 % fewer are accepted.

    Raises:
      ValueError: If no lmbda in the range gives that many; the message says which numbers are possible.
    """
    low, high = lmbda_range
    most, least = bytes_at(low), bytes_at(high)
    if not least <= num_bytes <= most:
        raise ValueError(
            f"{num_bytes:g} bytes a video are not possible: lmbda from {low:g} to {high:g} gives {most:.1f} down to "
            f"{least:.1f}."
        )
    for _ in range(_MAX_TRIALS):
        if least >= (1 - _BYTES_TOLERANCE) * num_bytes:
            break
        wanted = math.log((1 - _BYTES_TOLERANCE / 2) * num_bytes)
        share = (math.log(most) - wanted) / (math.log(most) - math.log(max(least, 1e-3)))
        middle = low * (high / low) ** min(max(share, 0.1), 0.9)
        found = bytes_at(middle)
        if found > num_bytes:
            low, most = middle, found
        else:
            high, least = middle, found
    return high


def _quantize(model: FrozenModel, videos: LabelledVideos, rows: np.ndarray) -> np.ndarray:
    """Return `z_hat` of some videos.

    Raises:
      TrainingDataError: If the model cannot encode one of them.
    """
    try:
        return model.quantize(videos.x[rows])
    except UncodableError as error:
        row = rows[np.flatnonzero(~error.usable)[0]]
        about = videos.fingerprint
        is_part = len(videos) != about.get("labelled_videos", about["records"])
        video = "A video" if is_part else f"Video {row + 1:,} of {len(videos):,} (in order, without unlabelled ones)"
        raise TrainingDataError(
            f"{video} in {about['first_file']} to {about['last_file']} has features so large that the network's "
            f"activations cannot be rounded: one is {videos.x[row][np.abs(videos.x[row]).argmax()]:.4g}. Remove its "
            "record, or leave out its file."
        ) from error


def _sample_z_hat(model: FrozenModel, videos: LabelledVideos) -> np.ndarray:
    """Return `z_hat` of evenly spaced videos, at most as many as banks of tables are fitted to."""
    rows = _evenly(len(videos), _BANK_VIDEOS)
    chunks = np.array_split(rows, -(-len(rows) // _CHUNK))
    return np.concatenate(list(_run_in_threads(lambda chunk: _quantize(model, videos, chunk), chunks)))


def _evenly(num_videos: int, wanted: int) -> np.ndarray:
    """Return the numbers of `wanted` evenly spaced videos, or of all videos if there are fewer."""
    return np.unique(np.linspace(0, num_videos - 1, min(num_videos, wanted)).astype(np.int64))


def count_z_hat(model: FrozenModel, videos: LabelledVideos) -> SymbolCounts:
    """Count the values of each dimension of `z_hat` over all videos."""
    counts = _run_in_threads(lambda rows: count_symbols(_quantize(model, videos, rows)), _chunks(videos))
    return functools.reduce(operator.add, counts)


def _run_in_threads(function: Callable[[np.ndarray], Any], chunks: Iterable[np.ndarray]) -> Iterator[Any]:
    # Each thread's products stay on one core.
    with threadpoolctl.threadpool_limits(1, "blas"), concurrent.futures.ThreadPoolExecutor(num_cpus()) as pool:
        yield from pool.map(function, chunks)


def measure(model: FrozenModel, videos: LabelledVideos) -> dict[str, float | int]:
    """Measure the size and the accuracy of a frozen model's codes.

    Args:
      model: A model with its task head.
      videos: Labelled videos that it was not trained on.

    Returns:
      gap, hit_at_1, perr and mean_ap of the head's logits on `z_hat`; num_videos; bits_per_video, the Shannon bits
      under the tables; bytes_per_video, the length of the range coder's codes and, with several banks, the fraction of
      a byte that names the bank.

    Raises:
      ValueError: If the model has no task head.
    """
    num_classes = _num_classes(model)
    accumulator = MetricsAccumulator(num_classes)

    def update(rows: np.ndarray, z_hat: np.ndarray) -> None:
        accumulator.update(model.logits(z_hat), videos.multi_hot(rows, num_classes))

    size = measure_size(model, videos, update)
    return {**dataclasses.asdict(accumulator.result()), **size}


def measure_size(
    model: FrozenModel,
    videos: LabelledVideos,
    visit: Callable[[np.ndarray, np.ndarray], None] = lambda rows, z_hat: None,
) -> dict[str, float]:
    """Measure the size of a frozen model's codes.

    Args:
      model: A model, with or without its task head.
      videos: Videos that it was not trained on. They need no labels.
      visit: Called with the numbers and the `z_hat` of some videos, until all have come.

    Returns:
      bits_per_video and bytes_per_video (`measure`).
    """
    bits, num_bytes = 0.0, 0
    bank_bits = np.log2(model.tables.num_banks)
    for rows in _chunks(videos):
        z_hat = _quantize(model, videos, rows)
        visit(rows, z_hat)
        encoded = range_coder.encode_cheapest(model.tables, z_hat)
        bits += float(bits_by_row(model.tables, z_hat, encoded.bank).sum())
        num_bytes += len(encoded.data)
    return {
        "bits_per_video": bits / len(videos) + bank_bits,
        "bytes_per_video": num_bytes / len(videos) + bank_bits / 8,
    }


def measure_unrounded(model: FrozenModel, videos: LabelledVideos) -> dict[str, float | int]:
    """Measure the size and the accuracy of a frozen model's activations without rounding: float32, deflated by zlib.

    For a network trained with lmbda=0, this is the baseline that a network with a rate has to beat.

    Args:
      model: A model with its task head.
      videos: Labelled videos that it was not trained on.

    Returns:
      gap, hit_at_1, perr, mean_ap and num_videos; bytes_per_video, each video deflated by itself, at level 9.

    Raises:
      ValueError: If the model has no task head.
    """
    num_classes = _num_classes(model)
    accumulator = MetricsAccumulator(num_classes)
    num_bytes = 0
    for rows in _chunks(videos):
        z = model.bottleneck(videos.x[rows])
        accumulator.update(model.logits(z), videos.multi_hot(rows, num_classes))
        num_bytes += deflated_bytes(z)
    return {**dataclasses.asdict(accumulator.result()), "bytes_per_video": num_bytes / len(videos)}


def _num_classes(model: FrozenModel) -> int:
    if model.head is None:
        raise ValueError("This model was frozen without its task head: there is no task to measure.")
    return model.head[0].shape[1]


def _chunks(videos: LabelledVideos) -> Iterator[np.ndarray]:
    for start in range(0, len(videos), _CHUNK):
        yield np.arange(start, min(start + _CHUNK, len(videos)))
