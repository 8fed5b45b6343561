"""The classifiers of the paper, with the bottleneck on their last hidden activations, and what was added to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from vidpress.model.networks.many_rates import FIRST_EXPONENT, RATE_AFFINE, RateLayers, rates_of
from vidpress.model.networks.reconstruction import InputDropout

BOTTLENECK = "bottleneck"
LOGITS = "logits"

# After training, averages of the batches' moments replace them. They forget within some hundred steps.
BATCH_NORM_MOMENTUM = 0.99
BATCH_NORM_EPSILON = 1e-3

# Standard deviation, at the start, of the input of the ReLU before the bottleneck, in rounding steps. Then 20 % of a
# video's values round to something other than 0. With 1 it is 31 %, and after training there are more bytes at the same
# GAP. With 0.3 or less, training is slow to switch dimensions on.
BOTTLENECK_SCALE = 0.6


def build_network(
    input_size: int,
    hidden: Sequence[int],
    num_classes: int,
    *,
    lmbda: float,
    lmbda_range: tuple[float, float] | None = None,
    weight_decay: float = 0.0,
    class_frequencies: np.ndarray | None = None,
    prior_banks: int = 1,
    mixed_precision: bool = False,
    input_dropout: float = 0.0,
    linear_bottleneck: int = 0,
    seed: int = 0,
) -> keras.Model:
    """Build a classifier: dense, batch normalisation and ReLU for each hidden layer, the bottleneck, and the logits.

    These are the 2-layer and 3-layer networks of Singh et al. (ICIP 2020): `hidden=(2000,)`, and
    `hidden=(6000, 2000)` with 3862 classes. Weight decay is an L2 penalty on the dense kernels, `weight_decay / 2 *
    sum(kernel**2)` as in the starter code, so that the optimiser sees `weight_decay * kernel` in the gradient.

    Args:
      input_size: Numbers in a video's input vector `x`.
      hidden: Units of each hidden layer; the last one's are the dimensions of the bottleneck.
      num_classes: How many classes there are.
      lmbda: Cost of a bit (`Bottleneck`). With 0 the network has no bottleneck layer: it is the baseline, which neither
        rounds nor pays for bits.
      lmbda_range: The lowest and the highest lmbda of a network for many rates. In training every video has its own;
        otherwise all have `lmbda`, until `many_rates.select_lmbda` is called.
      weight_decay: L2 penalty on the dense kernels.
      class_frequencies: float64[num_classes], the share of videos that have each class, within (0, 1). The biases of
        the logits start at their log-odds. From 0, a bias needs thousands of steps down to the -7 of a typical class of
        thousands; until then the network makes up for it with activations that are large in every video, which say
        nothing about the video and cost bits.
      prior_banks: Banks of the bottleneck's prior (`Bottleneck`).
      mixed_precision: Multiply in bfloat16. Weights, batch normalisation, the bottleneck and the loss stay float32.
      input_dropout: The share of the numbers of `x` that each training step sets to 0 (`InputDropout`).
      linear_bottleneck: Units of one more hidden layer, without a ReLU, after the others: these activations, which may
        be negative, are the bottleneck's. With 0 there is none.
      seed: Seed of the initial weights, of the bottleneck's noise, and of what is dropped.

    Returns:
      A model from `x` float32[batch, input_size] to logits[batch, num_classes], float32 or bfloat16. The penalties,
      rate included, are its `losses`. Its layers are named hidden_0, batch_norm_0, relu_0, ..., bottleneck and logits.

    Raises:
      ValueError: If a size is not positive, if lmbda is negative or not in its range, or if that is not a range.
    """
    sizes = (input_size, *hidden, num_classes)
    if not hidden or min(sizes) < 1:
        raise ValueError(
            f"hidden={tuple(hidden)} with {input_size} inputs and {num_classes} classes: all must be positive."
        )
    if lmbda < 0:
        raise ValueError(f"lmbda={lmbda} must not be negative.")
    penalty = keras.regularizers.L2(weight_decay / 2)
    precision = "mixed_bfloat16" if mixed_precision else "float32"
    x = activations = keras.Input((input_size,), name="x")
    if input_dropout:
        activations = InputDropout(input_dropout, seed=seed, name="input_dropout")(x)
    layers = RateLayers(x, lmbda, lmbda_range, num_banks=prior_banks, seed=seed)
    widths = (*hidden, linear_bottleneck) if linear_bottleneck else tuple(hidden)
    for index, units in enumerate(widths):
        activations = keras.layers.Dense(
            units,
            use_bias=False,  # batch normalisation has one
            kernel_initializer=keras.initializers.GlorotUniform(seed + index),
            kernel_regularizer=penalty,
            dtype=precision,
            name=f"hidden_{index}",
        )(activations)
        last = index == len(widths) - 1
        scale = BOTTLENECK_SCALE if lmbda and last else 1.0
        activations = keras.layers.BatchNormalization(
            momentum=BATCH_NORM_MOMENTUM,
            epsilon=BATCH_NORM_EPSILON,
            gamma_initializer=keras.initializers.Constant(scale),
            name=f"batch_norm_{index}",
        )(activations)
        activations = layers.affine(activations, index, FIRST_EXPONENT if last else 0.0)
        if not (last and linear_bottleneck):
            activations = keras.layers.ReLU(name=f"relu_{index}")(activations)
    activations = layers.affine(layers.bottleneck(activations, BOTTLENECK), BOTTLENECK, -FIRST_EXPONENT)
    bias = 0.0 if class_frequencies is None else log_odds(class_frequencies).astype(np.float32)
    logits = keras.layers.Dense(
        num_classes,
        kernel_initializer=keras.initializers.GlorotUniform(seed + len(widths)),
        bias_initializer=keras.initializers.Constant(bias),
        kernel_regularizer=penalty,
        dtype=precision,
        name=LOGITS,
    )(activations)
    return keras.Model(x, layers.affine(logits, LOGITS))


def log_odds(p: Any) -> Any:
    """Return the logit of probabilities within (0, 1)."""
    return np.log(p) - np.log1p(-p)


def hidden_layers(
    network: keras.Model,
) -> list[tuple[keras.layers.Dense, keras.layers.BatchNormalization]]:
    """Return the dense and the batch normalisation layer of each hidden layer, the first one first."""
    count = sum(layer.name.startswith("hidden_") for layer in network.layers)
    return [(network.get_layer(f"hidden_{index}"), network.get_layer(f"batch_norm_{index}")) for index in range(count)]


def with_features(network: keras.Model) -> keras.Model:
    """Return the model from `x` to `(logits, features)`, where features are what the logits are computed from."""
    return keras.Model(network.input, [network.output, network.get_layer(LOGITS).input])


def has_last_relu(network: keras.Model) -> bool:
    """Return whether a ReLU follows the last hidden layer: whether the bottleneck is not linear."""
    last = len(hidden_layers(network)) - 1
    return any(layer.name == f"relu_{last}" for layer in network.layers)


def rate_affine(network: keras.Model, name: int | str) -> tuple[np.ndarray | float, np.ndarray | float]:
    """Return scale and shift float64[channels] of a `RateAffine` at the selected lmbda.

    Args:
      network: A network of `build_network`.
      name: A hidden layer's index, `BOTTLENECK` or `LOGITS`.

    Returns:
      `(1, 0)` if the network is not for many rates.
    """
    rates = rates_of(network)
    if rates is None:
        return 1.0, 0.0
    position = np.array([[rates.selected]], np.float32)
    scale, shift = network.get_layer(f"{RATE_AFFINE}_{name}").at(position)
    return tuple(ops.convert_to_numpy(each)[0].astype(np.float64) for each in (scale, shift))


def activations_model(network: keras.Model) -> keras.Model:
    """Return the model from `x` to the activations `z` before rounding, sharing the network's weights."""
    last = len(hidden_layers(network)) - 1
    names = {layer.name for layer in network.layers}
    candidates = (f"relu_{last}", f"{RATE_AFFINE}_{last}", f"batch_norm_{last}")
    return keras.Model(network.input, network.get_layer(next(name for name in candidates if name in names)).output)


def task_loss(labels: Any, logits: Any) -> Any:
    """Return the sigmoid cross-entropy, summed over classes and averaged over videos, in nats.

    Args:
      labels: float32[batch, num_classes], multi-hot.
      logits: float32 or bfloat16[batch, num_classes].

    Returns:
      A float32 scalar.
    """
    logits = ops.cast(logits, "float32")
    # A logit's loss is -log(sigmoid(logit)) if the video has the label, and -log(sigmoid(-logit)) otherwise.
    losses = ops.relu(logits) - logits * labels + ops.softplus(-ops.abs(logits))
    return ops.mean(ops.sum(losses, axis=1))
