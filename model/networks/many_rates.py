"""One network for many rates: layers that depend on lmbda, and fold into the layers around them.

If bits are expensive, other activations are best than if they are cheap: smaller ones, fewer of them, and a classifier
that works with them. So here every channel's scale and shift, before and after the bottleneck, are functions of lmbda,
as are those of the prior; and in training each example has its own lmbda. At any one lmbda all of that is constant, so
that what is frozen there is an ordinary network.

Everywhere in this module `position` is where log(lmbda) lies in its range: 0 at the low end, 1 at the high one.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from vidpress.model.networks import noise
from vidpress.model.networks.bottleneck import Bottleneck, to_bits
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# Functions of lmbda are interpolated between anchors. Neighbouring anchors differ by at most this factor.
_ANCHOR_RATIO = 2.0

# Keeps the random numbers of lmbda apart from the bottleneck's noise of the same seed.
_STREAM = 1 << 31

# Names of the layers of a network that depend on lmbda begin with this.
RATE_AFFINE = "rate_affine"

# At first, activations before rounding are in proportion to lmbda to this power.
FIRST_EXPONENT = -0.25


@keras.saving.register_keras_serializable(package="vidpress")
class Rates(keras.layers.Layer):
    """Says for each example of a batch where in a range its lmbda lies.

    In training, lmbda is log-uniform in the range: the range is cut into as many equal parts as the batch has
    examples, and each of them gets one part. What is drawn follows from `seed` and a count of the training calls, which
    is among the weights. Otherwise lmbda is that of `select`.

    Args:
      low: The lowest lmbda, above 0.
      high: The highest.
      seed: Seed of what is drawn.
      **kwargs: As for `keras.layers.Layer`.

    Raises:
      ValueError: If that is not a range.
    """

    def __init__(self, low: float, high: float, *, seed: int = 0, **kwargs: Any):
        if not (0 < low < high and math.isfinite(high)):
            raise ValueError(f"lmbda_range={low, high} must be two values above 0, the lower one first.")
        super().__init__(**kwargs)
        self.low = float(low)
        self.high = float(high)
        self.seed = int(seed)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the count of calls, and the selected position: the geometric mean of the range."""
        self._calls = self.add_weight(name="calls", shape=(), dtype="int32", initializer="zeros", trainable=False)
        half = keras.initializers.Constant(0.5)
        self._selected = self.add_weight(name="selected", shape=(), initializer=half, trainable=False)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return the positions, float32[batch, 1]."""
        num_examples = ops.shape(inputs)[0]
        if not training:
            return ops.zeros((num_examples, 1)) + self._selected
        places = ops.cumsum(ops.ones((num_examples, 1)), axis=0) - 1
        self._calls.assign(self._calls + 1)
        drawn = noise.uniform((num_examples, 1), self.seed ^ _STREAM, ops.convert_to_tensor(self._calls))
        return (places + drawn) / ops.cast(num_examples, "float32")

    def select(self, lmbda: float) -> None:
        """Use this lmbda for every example, outside of training.

        Raises:
          ValueError: If it is not in the range.
        """
        if not self.low <= lmbda <= self.high:
            raise ValueError(f"lmbda={lmbda} must lie in the range from {self.low} to {self.high} of the training.")
        self._selected.assign(math.log(lmbda / self.low) / math.log(self.high / self.low))

    @property
    def selected(self) -> float:
        """The selected position."""
        return float(ops.convert_to_numpy(self._selected))

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {**super().get_config(), "low": self.low, "high": self.high, "seed": self.seed}


@keras.saving.register_keras_serializable(package="vidpress")
class RateAffine(keras.layers.Layer):
    """Scales and shifts each channel by functions of lmbda: `inputs * exp(log_scale) + shift`.

    Args:
      low: The lowest lmbda.
      high: The highest. A longer range has more anchors.
      exponent: At first, the scale is in proportion to lmbda to this power, and 1 in the middle of the range.
      **kwargs: As for `keras.layers.Layer`; `dtype` is float32.
    """

    def __init__(self, low: float, high: float, *, exponent: float = 0.0, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.low = float(low)
        self.high = float(high)
        self.exponent = float(exponent)

    def build(self, input_shape: Any) -> None:
        """Create the values at the anchors."""
        log_range = math.log(self.high / self.low)
        shape = (self.num_anchors, input_shape[0][-1])
        log_lmbda = np.linspace(-0.5, 0.5, shape[0])[:, None] * log_range
        self._log_scale = self.add_weight(name="log_scale", shape=shape, initializer="zeros")
        self._log_scale.assign(np.broadcast_to(self.exponent * log_lmbda, shape))
        self._shift = self.add_weight(name="shift", shape=shape, initializer="zeros")
        self.built = True

    def call(self, inputs: list[Any]) -> Any:
        """Return float32[batch, ..., channels] of `[inputs, position]`; positions are float32[batch, 1]."""
        scale, shift = self.for_inputs(*inputs)
        return ops.cast(inputs[0], "float32") * scale + shift

    def for_inputs(self, inputs: Any, position: Any) -> tuple[Any, Any]:
        """Return scale and shift at positions, in a shape that multiplies inputs: float32[batch, 1, ..., channels]."""
        shape = (-1, *(1 for _ in inputs.shape[1:-1]), inputs.shape[-1])
        scale, shift = (ops.reshape(each, shape) for each in self.at(position))
        return scale, shift

    def at(self, position: Any) -> tuple[Any, Any]:
        """Return scale and shift at positions: float32[n, channels] of float32[n, 1]."""
        weights = self.anchor_weights(position)
        return ops.exp(ops.matmul(weights, self._log_scale)), ops.matmul(weights, self._shift)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of what is scaled."""
        return input_shape[0]

    @property
    def num_anchors(self) -> int:
        """How many points of the range there are to interpolate between."""
        return 1 + math.ceil(math.log(self.high / self.low) / math.log(_ANCHOR_RATIO) - 1e-6)

    def anchor_weights(self, position: Any) -> Any:
        """Return the weights of the anchors at positions, float32[n, num_anchors] of [n, 1], adding up to 1."""
        places = position * (self.num_anchors - 1.0) - np.arange(self.num_anchors, dtype=np.float32)
        return ops.relu(1 - ops.abs(places))

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {**super().get_config(), "low": self.low, "high": self.high, "exponent": self.exponent}


@keras.saving.register_keras_serializable(package="vidpress")
class ManyRatesBottleneck(Bottleneck):
    """A `Bottleneck` that charges each example its own lmbda, under a prior that depends on it.

    The prior's cumulative is `sigmoid(scale * logits + shift)`, with the logits of a `DeepFactorized` and with scale
    and shift by channel and lmbda (`RateAffine`): the shift says how likely a channel is to be 0, the scale how fast
    greater values become rare.

    Args:
      low: The lowest lmbda.
      high: The highest.
      **kwargs: As for `Bottleneck`, except `lmbda`.
    """

    def __init__(self, low: float, high: float, **kwargs: Any):
        super().__init__(math.sqrt(low * high), **kwargs)
        self.low = float(low)
        self.high = float(high)
        self._affine = RateAffine(self.low, self.high)

    def build(self, input_shape: Any) -> None:
        """Create the prior."""
        self._affine.build(input_shape)
        self._num_anchors = self._affine.num_anchors
        super().build(input_shape[0])

    def call(self, inputs: list[Any], training: bool = False) -> Any:
        """Return `z_hat`, of the shape of `z`, of `[z, position]`, and add the loss: the mean of `lmbda * bits`."""
        position = inputs[1]
        z, z_hat, y = self._rounded(inputs[0], training)
        bits = to_bits(self.prior.log_prob(y, *self._affine.for_inputs(y, position)))
        bits += self._bits_of_banks(z, z_hat, training, self._affine.anchor_weights(position))
        self._charge(ops.mean(_lmbda_at(self.low, self.high, position[:, 0]) * bits), bits)
        return z_hat

    def tables(self) -> RangeCodingTables:
        """Raise an error: the prior has other tables at each lmbda."""
        raise ValueError("A network for many rates has no tables for its prior: use empirical ones.")

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of `z`."""
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        config = super().get_config()
        del config["lmbda"]
        return {**config, "low": self.low, "high": self.high}


def _lmbda_at(low: float, high: float, position: Any) -> Any:
    """Return lmbda at positions."""
    return low * ops.exp(math.log(high / low) * position)


class RateLayers:
    """Adds to a network what depends on lmbda: its bottleneck and, if it is for many rates, scales and shifts.

    Args:
      inputs: The network's input.
      lmbda: Cost of a bit (`Bottleneck`); with 0 there is no bottleneck. A network for many rates is set to it.
      lmbda_range: The lowest and the highest lmbda of a network for many rates.
      num_banks: Banks of the bottleneck's prior.
      seed: Seed of the bottleneck's noise, and of what is drawn.

    Raises:
      ValueError: If that is not a range, or if lmbda is not in it.
    """

    def __init__(
        self, inputs: Any, lmbda: float, lmbda_range: tuple[float, float] | None, *, num_banks: int, seed: int
    ):
        self._lmbda = lmbda
        self._of_prior: dict[str, Any] = {"num_banks": num_banks, "seed": seed}
        self._rates = None
        if lmbda_range is not None:
            self._rates = Rates(*lmbda_range, seed=seed, name="rates")
            self._position = self._rates(inputs)
            self._rates.select(lmbda)

    def affine(self, inputs: Any, name: int | str, exponent: float = 0.0) -> Any:
        """Return inputs scaled and shifted (`RateAffine`); at one rate, as they are."""
        if self._rates is None:
            return inputs
        name = f"{RATE_AFFINE}_{name}"
        layer = RateAffine(self._rates.low, self._rates.high, exponent=exponent, name=name)
        return layer([inputs, self._position])

    def bottleneck(self, z: Any, name: str | None = None) -> Any:
        """Return activations rounded, and charged for; without a rate, as they are."""
        if self._rates is not None:
            layer = ManyRatesBottleneck(self._rates.low, self._rates.high, name=name, **self._of_prior)
            return layer([z, self._position])
        return Bottleneck(self._lmbda, name=name, **self._of_prior)(z) if self._lmbda else z


def rates_of(model: keras.Model) -> Rates | None:
    """Return the layer that says which rate a model is for, or None if it is for one alone."""
    return next((layer for layer in model.layers if isinstance(layer, Rates)), None)


def select_lmbda(model: keras.Model, lmbda: float) -> None:
    """Let a model for many rates be the model at `lmbda`, outside of training.

    Raises:
      ValueError: If lmbda is not in the model's range, or if the model is not for many rates.
    """
    rates = rates_of(model)
    if rates is None:
        raise ValueError(f"Model {model.name!r} is for one rate: there is no other to select.")
    rates.select(lmbda)
