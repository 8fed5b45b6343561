"""ResNetV2-20 and ResNetV2-50, with the bottleneck on their penultimate activations."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from vidpress.model.images.experiments import Experiment
from vidpress.model.networks.many_rates import FIRST_EXPONENT, RateLayers

FEATURES = "features"
POOL = "pool"
LOGITS = "logits"
_LAST_BATCH_NORM = "post_bn"  # its name in keras.applications

# The layers that a network with a rate and one without have in common.
_WEIGHTED = (keras.layers.Conv2D, keras.layers.BatchNormalization, keras.layers.Dense)

_BLOCKS_A_STAGE = 3  # of two convolutions; with the first one and the logits, 20 layers

# If activations are rounded: what the last batch normalisation multiplies by at first, in rounding steps. A mean over
# many positions varies less than each position does.
_SCALE_OF_POOLED = 3.0
_SCALE_OF_MAP = 1.0


def build_image_network(
    experiment: Experiment,
    *,
    lmbda: float,
    lmbda_range: tuple[float, float] | None = None,
    prior_banks: int = 1,
    spatial: bool = False,
    mixed_precision: bool = False,
    seed: int = 0,
) -> keras.Model:
    """Build an experiment's classifier.

    The bottleneck rounds the vector after global average pooling, or the feature map before it, where all positions of
    a channel share a distribution (Singh et al., section 2.2).

    Args:
      experiment: Which network, for which images.
      lmbda: Cost of a bit (`Bottleneck`). With 0 there is no bottleneck layer: this is the baseline.
      lmbda_range: The lowest and the highest lmbda of a network for many rates. In training every image has its own;
        otherwise all have `lmbda`, until `many_rates.select_lmbda` is called.
      prior_banks: Banks of the bottleneck's prior.
      spatial: Put the bottleneck before the pooling.
      mixed_precision: Multiply in bfloat16. Weights, batch normalisation, pooling, bottleneck and logits stay float32.
      seed: Seed of the initial weights, and of the bottleneck's noise.

    Returns:
      A model from pixels float32[batch, height, width, channels], scaled to [-1, 1], to logits float32[batch,
      num_classes]. The output of its layer `features` is what a bottleneck rounds.

    Raises:
      ValueError: If lmbda is negative or not in its range, or if that is not a range.
    """
    if lmbda < 0:
        raise ValueError(f"lmbda={lmbda} must not be negative.")
    with _seed(seed), _precision("mixed_bfloat16" if mixed_precision else "float32"):
        if experiment.network == "ResNetV2-50":
            backbone = keras.applications.ResNet50V2(
                include_top=False, weights=None, input_shape=experiment.image_shape
            )
        else:
            backbone = resnet_v2_20(
                experiment.image_shape, width=experiment.width, stem_strides=experiment.stem_strides
            )
    normalized = backbone.get_layer(_LAST_BATCH_NORM)
    pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name=POOL)
    features = keras.layers.Activation("linear", dtype="float32", name=FEATURES)
    layers = RateLayers(backbone.input, lmbda, lmbda_range, num_banks=prior_banks, seed=seed)
    last_map = keras.layers.ReLU(dtype="float32")(layers.affine(normalized.output, FEATURES, FIRST_EXPONENT))
    z_hat = layers.bottleneck(features(last_map if spatial else pool(last_map)))
    vector = layers.affine(pool(z_hat) if spatial else z_hat, "vector", -FIRST_EXPONENT)
    first = keras.initializers.GlorotUniform(seed)
    logits = keras.layers.Dense(experiment.num_classes, kernel_initializer=first, dtype="float32", name=LOGITS)(vector)
    network = keras.Model(backbone.input, layers.affine(logits, LOGITS), name=experiment.network.lower())
    if lmbda:
        scale = _SCALE_OF_MAP if spatial else _SCALE_OF_POOLED
        normalized.gamma.assign(np.full(normalized.gamma.shape, scale))
    return network


def start_as(network: keras.Model, trained: keras.Model) -> None:
    """Give a network with a bottleneck the weights of the same network without a rate.

    Its features are then those of the other, in rounding steps: its last batch normalisation multiplies by as much, in
    the mean of the channels, as it would without this. The logits stay the same, but for the rounding.

    Args:
      network: A network of `build_image_network`.
      trained: The network of the same experiment with `lmbda=0`, whether its features are spatial or not.
    """
    own, others = ([layer for layer in model.layers if isinstance(layer, _WEIGHTED)] for model in (network, trained))
    normalized, logits = network.get_layer(_LAST_BATCH_NORM), network.get_layer(LOGITS)
    steps = np.abs(normalized.gamma).mean()
    for layer, other in zip(own, others, strict=True):
        layer.set_weights(other.get_weights())
    gamma, beta, *moments = normalized.get_weights()
    scale = steps / np.abs(gamma).mean()
    normalized.set_weights([gamma * scale, beta * scale, *moments])
    kernel, bias = logits.get_weights()
    logits.set_weights([kernel / scale, bias])


@contextlib.contextmanager
def _seed(seed: int) -> Iterator[None]:
    """Build layers whose initial weights follow from a seed: keras.applications takes none, and uses Python's own."""
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def _precision(policy: str) -> Iterator[None]:
    """Build layers with a policy: keras.applications takes none."""
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(before)


def resnet_v2_20(input_shape: tuple[int, int, int], *, width: int = 16, stem_strides: int = 1) -> keras.Model:
    """Build the convolutions of the 20-layer network for small images, with pre-activation.

    That is He et al., "Identity Mappings in Deep Residual Networks", for CIFAR: a 3 x 3 convolution, three stages of
    three blocks of two 3 x 3 convolutions, the last two stages at half the size and twice the channels each, and batch
    normalisation and ReLU before every convolution but the first, and at the end. Where a stage begins, a 1 x 1
    convolution of the pre-activation is the shortcut.

    Args:
      input_shape: Height, width and channels.
      width: Channels of the first stage.
      stem_strides: Strides of the first convolution.

    Returns:
      A model up to the last feature map, `[batch, height, width, 4 * width]`.
    """

    def convolution(filters: int, size: int = 3, strides: int = 1, name: str | None = None) -> keras.layers.Conv2D:
        return keras.layers.Conv2D(
            filters, size, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
        )

    def activation(x: Any, name: str | None = None) -> Any:
        # In training, the moments of the last hundred steps describe a network better than those of the last thousand.
        x = keras.layers.BatchNormalization(momentum=0.97, epsilon=1e-5, name=name)(x)
        return keras.layers.ReLU()(x)

    image = keras.Input(input_shape, name="image")
    x = convolution(width, strides=stem_strides, name="stem")(image)
    for stage in range(3):
        for block in range(_BLOCKS_A_STAGE):
            filters, strides = width << stage, 2 if stage and not block else 1
            active = activation(x)
            shortcut = convolution(filters, 1, strides)(active) if strides > 1 else x
            residual = convolution(filters, strides=strides)(active)
            residual = convolution(filters)(activation(residual))
            x = keras.layers.Add()([shortcut, residual])
    return keras.Model(image, activation(x, _LAST_BATCH_NORM))
