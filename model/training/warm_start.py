"""A network that starts as its teachers side by side, followed by the principal components of their activations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.networks import classifiers
from vidpress.model.networks.reconstruction import Decoder
from vidpress.model.networks.teacher import error_root, head_of
from vidpress.model.training.options import TrainingOptions

# Videos that the principal components are those of.
_SAMPLE = 50_000


def can_start_as(options: TrainingOptions, teachers: Sequence[FrozenModel]) -> bool:
    """Return whether a network can start as its teachers: if they have its hidden layers, and enough components."""
    if not (options.linear_bottleneck and options.reconstruction and options.lmbda and teachers):
        return False
    if len({len(teacher.hidden) for teacher in teachers}) > 1:
        return False
    layers = zip(*(teacher.hidden for teacher in teachers), strict=True)
    widths = tuple(sum(kernel.shape[1] for kernel, _ in side_by_side) for side_by_side in layers)
    return widths == options.widths and options.linear_bottleneck <= widths[-1]


def start_as(
    network: keras.Model, decoder: Decoder, options: TrainingOptions, teachers: Sequence[FrozenModel], x: np.ndarray
) -> None:
    """Give a network the weights of its teachers, and its linear bottleneck those of a transform code.

    Its hidden layers are those of the teachers side by side, and its logits the mean of theirs. The bottleneck's
    activations are the principal components of the teachers' activations, in the basis where all
    errors matter alike (`Teacher.activations`), in units of a step. Rounding them, and charging for bits, is then
    already close to the best linear code; training starts from there. In theory the best step is the one at which
    another bit costs what it saves: if rounding a step to integers leaves an error of `step^2 / 12`, which a bit lowers
    by a factor of 4, then `lmbda = weight / variance * step^2 * ln(2) / 6`.

    Args:
      network: A network of `classifiers.build_network` with a linear bottleneck.
      decoder: The decoder of the teacher's activations.
      options: How it is trained; `can_start_as` says whether this is possible.
      teachers: Models with a task head.
      x: float32[num_videos, input_size], of the training data.
    """
    heads = [head_of(teacher) for teacher in teachers]
    activations = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(np.int64))]
    *lower, (dense, batch_norm) = classifiers.hidden_layers(network)
    for index, (lower_dense, lower_norm) in enumerate(lower):
        kernels = [teacher.hidden[index][0] for teacher in teachers]
        kernel = np.concatenate(kernels, axis=1) if index == 0 else _block_diagonal(kernels)
        bias = np.concatenate([teacher.hidden[index][1] for teacher in teachers])
        activations = np.maximum(_start_layer(lower_dense, lower_norm, activations, kernel, bias), 0)
    mean = activations.mean(axis=0, dtype=np.float64)
    root = _block_diagonal([error_root(teacher).astype(np.float64) for teacher in teachers])
    turned = (activations - mean) @ root
    variances, components = np.linalg.eigh(turned.T @ turned / len(turned))
    components = components[:, ::-1][:, : options.linear_bottleneck]
    low, high = options.lmbda_range or (options.lmbda, options.lmbda)
    lmbda = math.sqrt(low * high)
    step = math.sqrt(6 * lmbda * variances.sum() / (options.reconstruction * math.log(2)))
    kernel = root @ components / step
    _start_layer(dense, batch_norm, activations, kernel.astype(np.float32), (-mean @ kernel).astype(np.float32))
    restoring = step * components.T
    decoder.set_weights([restoring.astype(np.float32), (mean @ root).astype(np.float32)])
    head_kernel = np.concatenate([kernel for kernel, _ in heads]) / len(heads)
    head_bias = np.mean([bias for _, bias in heads], axis=0)
    logits = network.get_layer(classifiers.LOGITS)
    logits.set_weights(
        [
            (restoring @ np.linalg.solve(root, head_kernel.astype(np.float64))).astype(np.float32),
            (mean @ head_kernel + head_bias).astype(np.float32),
        ]
    )


def _block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return a matrix of the blocks' sizes together, with zeros besides them."""
    ends = np.cumsum([block.shape for block in blocks], axis=0)
    matrix = np.zeros(ends[-1], blocks[0].dtype)
    for block, (row, column) in zip(blocks, ends, strict=True):
        matrix[row - len(block) : row, column - block.shape[1] : column] = block
    return matrix


def _start_layer(
    dense: keras.layers.Dense,
    batch_norm: keras.layers.BatchNormalization,
    inputs: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
) -> np.ndarray:
    """Give a layer a kernel and a bias, whatever the batch: its normalisation scales to what the inputs give.

    Returns:
      float32[n, out], its outputs before the ReLU.
    """
    outputs = inputs @ kernel
    mean, variance = outputs.mean(axis=0, dtype=np.float64), outputs.var(axis=0, dtype=np.float64)
    dense.set_weights([kernel])
    batch_norm.set_weights([np.sqrt(variance + batch_norm.epsilon), mean + bias, mean, variance])
    return outputs + bias
