"""One network for many rates: layers that depend on lmbda, and fold into the dense layers around them.

A video whose bits are dear wants other activations than one whose bits are cheap: smaller ones, fewer of them, and a
classifier that makes do with them. So here every channel's scale and shift, before the bottleneck and behind it, are
functions of lmbda, as are those of the prior; and in training each video has an lmbda of its own. At any one lmbda all
of that is constant, so that what is frozen there is an ordinary network.

Everywhere in this module `position` is where log(lmbda) lies in its range: 0 at the low end, 1 at the high one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_compression as tfc

from vidpress.model.training.bottleneck import Bottleneck

# Functions of lmbda are interpolated between anchors, of which neighbours differ by a factor of so much at most.
_ANCHOR_RATIO = 2.0

_LEAST_DISTANCE = 1e-6

# At first, activations before rounding are in proportion to lmbda to this power.
FIRST_EXPONENT = -0.25


@tf.keras.utils.register_keras_serializable(package="vidpress")
class Rates(tf.keras.layers.Layer):
    """Says for each video of a batch where in a range its lmbda lies.

    In training, lmbda is log-uniform in the range: the batch is spread over it, one video to each of as many equal
    parts as it has videos. What is drawn follows from `seed` and a count of the training calls, which is among the
    weights. Otherwise lmbda is that of `select`.

    Args:
      low: The least lmbda, above 0.
      high: The greatest.
      seed: Of what is drawn.
      **kwargs: Of `tf.keras.layers.Layer`.

    Raises:
      ValueError: If that is no range.
    """

    def __init__(self, low: float, high: float, *, seed: int = 0, **kwargs: Any):
        if not (0 < low < high and math.isfinite(high)):
            raise ValueError(f"lmbda_range={low, high} must be two values above 0, the lower one first.")
        super().__init__(**kwargs)
        self.low = float(low)
        self.high = float(high)
        self.seed = int(seed)

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the count, and the selected position: the geometric mean of the range."""
        self._calls = self.add_weight("calls", shape=(), dtype=tf.int64, initializer="zeros", trainable=False)
        half = tf.keras.initializers.Constant(0.5)
        self._selected = self.add_weight("selected", shape=(), initializer=half, trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the positions, float32[batch, 1]."""
        num_videos = tf.shape(inputs)[0]
        if not training:
            return tf.fill((num_videos, 1), self._selected)
        call = self._calls.assign_add(1)
        # A negative first number keeps the stream apart from the bottleneck's noise.
        seed = tf.stack([tf.constant(-1 - self.seed, tf.int64), call])
        places = tf.range(tf.cast(num_videos, tf.float32)) + tf.random.stateless_uniform((num_videos,), seed)
        return places[:, None] / tf.cast(num_videos, tf.float32)

    def select(self, lmbda: float) -> None:
        """Take this lmbda for every video, outside of training.

        Raises:
          ValueError: If it is not in the range.
        """
        if not self.low <= lmbda <= self.high:
            raise ValueError(f"lmbda={lmbda} must lie in the range from {self.low} to {self.high} of the training.")
        self._selected.assign(math.log(lmbda / self.low) / math.log(self.high / self.low))

    @property
    def selected(self) -> float:
        """The selected position."""
        return float(self._selected)

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {**super().get_config(), "low": self.low, "high": self.high, "seed": self.seed}


@tf.keras.utils.register_keras_serializable(package="vidpress")
class RateAffine(tf.keras.layers.Layer):
    """Scales and shifts each channel by functions of lmbda: `inputs * exp(log_scale) + shift`.

    Args:
      low: The least lmbda.
      high: The greatest. A longer range has more anchors.
      exponent: At first, the scale is lmbda to this power, and 1 in the middle of the range.
      **kwargs: Of `tf.keras.layers.Layer`; `dtype` is float32.
    """

    def __init__(self, low: float, high: float, *, exponent: float = 0.0, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.low = float(low)
        self.high = float(high)
        self.exponent = float(exponent)

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        """Create the values at the anchors."""
        log_range = math.log(self.high / self.low)
        shape = (self.num_anchors, input_shape[0][-1])
        log_lmbda = np.linspace(-0.5, 0.5, shape[0])[:, None] * log_range
        first = tf.keras.initializers.Constant(np.broadcast_to(self.exponent * log_lmbda, shape))
        self._log_scale = self.add_weight("log_scale", shape=shape, initializer=first)
        self._shift = self.add_weight("shift", shape=shape, initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """Return float32[batch, channels] of `[inputs, position]`, of shapes [batch, channels] and [batch, 1]."""
        scale, shift = self.at(inputs[1])
        return tf.cast(inputs[0], tf.float32) * scale + shift

    def at(self, position: tf.Tensor | float) -> tuple[tf.Tensor, tf.Tensor]:
        """Return scale and shift at positions: float32[n, channels] of [n, 1], or [channels] of a number."""
        weights = self.anchor_weights(position)
        scale, shift = tf.exp(weights @ self._log_scale), weights @ self._shift
        return (scale, shift) if tf.is_tensor(position) else (scale[0], shift[0])

    @property
    def num_anchors(self) -> int:
        """Between how many points over the range it is interpolated."""
        return 1 + math.ceil(math.log(self.high / self.low) / math.log(_ANCHOR_RATIO) - 1e-6)

    def anchor_weights(self, position: tf.Tensor | float) -> tf.Tensor:
        """Return the weights of the anchors at positions, float32[n, num_anchors], adding up to 1."""
        places = position * (self.num_anchors - 1.0) - np.arange(self.num_anchors, dtype=np.float32)
        return tf.reshape(tf.nn.relu(1 - tf.abs(places)), (-1, self.num_anchors))

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {**super().get_config(), "low": self.low, "high": self.high, "exponent": self.exponent}


@tf.keras.utils.register_keras_serializable(package="vidpress")
class ManyRatesBottleneck(Bottleneck):
    """A `Bottleneck` that charges each video its own lmbda, under a prior that depends on it.

    The prior's cumulative is `sigmoid(scale * logits + shift)`, with the logits of a `tfc.DeepFactorized` and with
    scale and shift by channel and lmbda (`RateAffine`): the shift says how likely a channel is to be 0, the scale how
    fast greater values become rare.

    Args:
      low: The least lmbda.
      high: The greatest.
      **kwargs: Of `Bottleneck`, but `lmbda`.
    """

    def __init__(self, low: float, high: float, **kwargs: Any):
        super().__init__(math.sqrt(low * high), **kwargs)
        self.low = float(low)
        self.high = float(high)

    def build(self, input_shape: list[tf.TensorShape]) -> None:
        """Create the prior."""
        self._affine = RateAffine(self.low, self.high)
        self._affine.build(input_shape)
        self._num_anchors = self._affine.num_anchors
        super().build(input_shape[0])

    def call(self, inputs: list[tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Return `z_hat` float32[batch, channels] of `[z, position]`, and add the loss: the mean of `lmbda * bits`."""
        z, position = inputs
        z_hat = tfc.round_st(z)
        y = z + self._noise(tf.shape(z)) if training else tf.stop_gradient(z_hat)
        scale, shift = self._affine.at(position)
        # With upper and lower logits u and l, sigmoid(u) - sigmoid(l) = sigmoid(u) * sigmoid(-l) * (1 - exp(l - u)).
        upper, lower = (self.prior.base._logits_cumulative(y + side) * scale + shift for side in (0.5, -0.5))
        # Far out, float32 may not tell them apart.
        distance = tf.maximum(upper - lower, _LEAST_DISTANCE)
        log_probs = tf.math.log_sigmoid(upper) + tf.math.log_sigmoid(-lower) + tf.math.log(-tf.math.expm1(-distance))
        bits = tf.reduce_sum(log_probs, axis=1) / -math.log(2)
        if self.num_banks > 1:
            weights = self._affine.anchor_weights(position)
            bits += self._banks.information(z, z_hat, weights)
            if training:
                self._banks.update(z_hat, self._calls, weights)
        self.add_loss(tf.reduce_mean(_at(self.low, self.high, position[:, 0]) * bits))
        self.bits.update_state(bits)
        return z_hat

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        config = super().get_config()
        del config["lmbda"]
        return {**config, "low": self.low, "high": self.high}


def _at(low: float, high: float, position: tf.Tensor) -> tf.Tensor:
    """Return lmbda at positions."""
    return low * tf.exp(math.log(high / low) * position)
