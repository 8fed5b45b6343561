"""A network that starts as its teacher, followed by the principal components of its activations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.networks import classifiers
from vidpress.model.networks.reconstruction import Decoder
from vidpress.model.networks.teacher import error_root
from vidpress.model.training.options import TrainingOptions

# Videos that the principal components are those of.
_SAMPLE = 50_000


def can_start_as(options: TrainingOptions, teachers: Sequence[FrozenModel]) -> bool:
    """Return whether a network can start as its teacher: if that has the same hidden layers, and enough components."""
    if not (options.linear_bottleneck and options.reconstruction and options.lmbda and len(teachers) == 1):
        return False
    widths = tuple(kernel.shape[1] for kernel, _ in teachers[0].hidden)
    return widths == options.hidden and options.linear_bottleneck <= widths[-1]


def start_as(
    network: keras.Model, decoder: Decoder, options: TrainingOptions, teacher: FrozenModel, x: np.ndarray
) -> None:
    """Give a network the weights of its teacher, and its linear bottleneck those of a transform code.

    The bottleneck's activations are the principal components of the teacher's activations, in the basis where all
    errors matter alike (`Teacher.activations`), in units of a step. Rounding them, and charging for bits, is then
    already close to the best linear code; training starts from there. In theory the best step is the one at which
    another bit costs what it saves: if rounding a step to integers leaves an error of `step^2 / 12`, which a bit lowers
    by a factor of 4, then `lmbda = weight / variance * step^2 * ln(2) / 6`.

    Args:
      network: A network of `classifiers.build_network` with a linear bottleneck.
      decoder: The decoder of the teacher's activations.
      options: How it is trained; `can_start_as` says whether this is possible.
      teacher: A model with a task head.
      x: float32[num_videos, input_size], of the training data.
    """
    if teacher.head is None:
        raise ValueError(f"Teacher {teacher.model_id} has no task head: train it with one.")
    activations = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(np.int64))]
    *lower, (dense, batch_norm) = classifiers.hidden_layers(network)
    for (lower_dense, lower_norm), (kernel, bias) in zip(lower, teacher.hidden, strict=True):
        activations = np.maximum(_start_layer(lower_dense, lower_norm, activations, kernel, bias), 0)
    mean = activations.mean(axis=0, dtype=np.float64)
    root = error_root(teacher).astype(np.float64)
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
    head_kernel, head_bias = teacher.head
    logits = network.get_layer(classifiers.LOGITS)
    logits.set_weights(
        [
            (restoring @ np.linalg.solve(root, head_kernel.astype(np.float64))).astype(np.float32),
            (mean @ head_kernel + head_bias).astype(np.float32),
        ]
    )


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
