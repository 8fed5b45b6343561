"""A network that starts as its teachers side by side.

What is coded are then the principal components of their activations, or their classes' scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import numpy as np

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.networks import classifiers
from vidpress.model.networks.many_rates import RATE_AFFINE
from vidpress.model.networks.reconstruction import Decoder
from vidpress.model.networks.teacher import error_root, head_of
from vidpress.model.training.options import TrainingOptions

# Videos that the principal components are those of, and videos that say how probable a class is that is off.
_SAMPLE = 50_000
_SCORE_SAMPLE = 10_000

# Nats of a score in a unit.
_SCORE_STEP = 0.5
# How much a class's frequency says where all are off, of what it says by itself. That little orders them, and moves
# none of those that are on.
_OFF_WEIGHT = 0.02


def can_start_as(options: TrainingOptions, teachers: Sequence[FrozenModel]) -> bool:
    """Return whether a network can start as its teachers: if they have its hidden layers, and enough components."""
    if not (teachers and options.lmbda and (options.score_bottleneck or options.linear_bottleneck)):
        return False
    if options.linear_bottleneck and not options.reconstruction:
        return False
    if len({len(teacher.hidden) for teacher in teachers}) > 1:
        return False
    layers = zip(*(teacher.hidden for teacher in teachers), strict=True)
    widths = tuple(sum(kernel.shape[1] for kernel, _ in side_by_side) for side_by_side in layers)
    return widths == options.widths and options.linear_bottleneck <= widths[-1]


def start_as(
    network: keras.Model,
    decoder: Decoder | None,
    options: TrainingOptions,
    teachers: Sequence[FrozenModel],
    x: np.ndarray,
) -> None:
    """Give a network the weights of its teachers, and its bottleneck those of a code of their activations or scores.

    Its hidden layers are those of the teachers side by side, and its logits the mean of theirs.

    Args:
      network: A network of `classifiers.build_network` with a linear bottleneck or one of scores.
      decoder: The decoder of the teacher's activations, for a linear bottleneck.
      options: How it is trained; `can_start_as` says whether this is possible.
      teachers: Models with a task head.
      x: float32[num_videos, input_size], of the training data.
    """
    heads = [head_of(teacher) for teacher in teachers]
    head = np.concatenate([kernel for kernel, _ in heads]) / len(heads), np.mean([bias for _, bias in heads], axis=0)
    activations = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), _SAMPLE)).astype(np.int64))]
    for index, (dense, batch_norm) in enumerate(classifiers.hidden_layers(network)[:-1]):
        kernels = [teacher.hidden[index][0] for teacher in teachers]
        kernel = np.concatenate(kernels, axis=1) if index == 0 else _block_diagonal(kernels)
        bias = np.concatenate([teacher.hidden[index][1] for teacher in teachers])
        activations = np.maximum(_start_layer(dense, batch_norm, activations, kernel, bias), 0)
    if options.score_bottleneck:
        _start_scores(network, options, head, activations)
    elif decoder is not None:
        _start_components(network, decoder, options, teachers, head, activations)


def _start_components(
    network: keras.Model,
    decoder: Decoder,
    options: TrainingOptions,
    teachers: Sequence[FrozenModel],
    head: tuple[np.ndarray, np.ndarray],
    activations: np.ndarray,
) -> None:
    """Give a linear bottleneck the weights of a transform code.

    The bottleneck's activations are the principal components of the teachers' activations, in the basis where all
    errors matter alike (`Teacher.activations`), in units of a step. Rounding them, and charging for bits, is then
    already close to the best linear code; training starts from there. In theory the best step is the one at which
    another bit costs what it saves: if rounding a step to integers leaves an error of `step^2 / 12`, which a bit lowers
    by a factor of 4, then `lmbda = weight / variance * step^2 * ln(2) / 6`.
    """
    mean = activations.mean(axis=0, dtype=np.float64)
    root = _block_diagonal([error_root(teacher).astype(np.float64) for teacher in teachers])
    turned = (activations - mean) @ root
    variances, components = np.linalg.eigh(turned.T @ turned / len(turned))
    components = components[:, ::-1][:, : options.linear_bottleneck]
    step = math.sqrt(6 * _middle(options) * variances.sum() / (options.reconstruction * math.log(2)))
    kernel = root @ components / step
    dense, batch_norm = classifiers.hidden_layers(network)[-1]
    _start_layer(dense, batch_norm, activations, kernel.astype(np.float32), (-mean @ kernel).astype(np.float32))
    restoring = step * components.T
    decoder.set_weights([restoring.astype(np.float32), (mean @ root).astype(np.float32)])
    head_kernel, head_bias = head
    network.get_layer(classifiers.LOGITS).set_weights(
        [
            (restoring @ np.linalg.solve(root, head_kernel.astype(np.float64))).astype(np.float32),
            (mean @ head_kernel + head_bias).astype(np.float32),
        ]
    )


def _start_scores(
    network: keras.Model,
    options: TrainingOptions,
    head: tuple[np.ndarray, np.ndarray],
    activations: np.ndarray,
) -> None:
    """Give a bottleneck of scores the weights of its teachers' head, above a threshold, in units of half a nat.

    A class whose probability is below lmbda is off, that is, 0: bits that say more of it would cost more than they are
    worth to the task's loss. The logit of a class that is on is its score, and that of one that is off is just below
    the threshold. So logits rank videos and classes as the scores do; they say too much of what is off.
    """
    kernel, bias = head
    middle = classifiers.log_odds(_middle(options))
    dense, batch_norm = classifiers.hidden_layers(network)[-1]
    units = _start_layer(dense, batch_norm, activations, kernel / _SCORE_STEP, (bias - middle) / _SCORE_STEP)
    scores = middle + _SCORE_STEP * units[:: -(-len(units) // _SCORE_SAMPLE)]
    logits = network.get_layer(classifiers.LOGITS)
    off = _logits_of_off(scores, middle)
    logits.set_weights([_SCORE_STEP * np.eye(len(off), dtype=np.float32), off])
    if options.lmbda_range is None:
        return
    before, after, at_end = (
        network.get_layer(f"{RATE_AFFINE}_{name}")
        for name in (len(options.hidden), classifiers.BOTTLENECK, classifiers.LOGITS)
    )
    thresholds = classifiers.log_odds(np.geomspace(*options.lmbda_range, before.num_anchors))
    none = np.zeros((len(thresholds), len(off)), np.float32)
    before.set_weights([none, none + (middle - thresholds)[:, None] / _SCORE_STEP])
    after.set_weights([none, none])
    at_end.set_weights([none, np.stack([_logits_of_off(scores, each) for each in thresholds]) - off])


def _logits_of_off(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return the logit of each class where it is off, float32[num_classes].

    Args:
      scores: float32[num_videos, num_classes].
      threshold: The score above which a class is on, if that rounds to a unit.
    """
    is_off = scores < threshold + _SCORE_STEP / 2
    share = (np.sum(is_off / (1 + np.exp(-scores)), axis=0) + 1e-4) / (np.sum(is_off, axis=0) + 1)
    return (threshold + _OFF_WEIGHT * (classifiers.log_odds(share) - threshold)).astype(np.float32)


def _middle(options: TrainingOptions) -> float:
    """Return the geometric mean of the range of lmbda."""
    low, high = options.lmbda_range or (options.lmbda, options.lmbda)
    return math.sqrt(low * high)


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
