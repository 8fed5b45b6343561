"""The prior of the bottleneck: a learned density for each channel, and the range coding tables that it gives.

It is the fully factorised density of Ballé et al., "Variational image compression with a scale hyperprior" (ICLR 2018),
appendix 6.1, convolved with the noise that stands for rounding (6.2). Numbers and tables are those of
`tfc.NoisyDeepFactorized` and `tfc.ContinuousBatchedEntropyModel` of tensorflow-compression.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from vidpress.model.tables.range_coding_tables import DEFAULT_PRECISION, RangeCodingTables

# The probability that tables leave to the escape symbol.
_TAIL_MASS = 2**-8

# Far out, float32 may not tell the cumulative's logits on both sides of an integer apart.
_LEAST_DISTANCE = 1e-6

# The search for the tails ends when each has made this many steps since it first passed its target, or is this close.
_TAIL_STEPS = 100
_TAIL_TOLERANCE = 1e-8


@keras.saving.register_keras_serializable(package="vidpress")
class DeepFactorized(keras.layers.Layer):
    """A distribution of real numbers for each channel, whose cumulative is a small monotonic network.

    Args:
      num_filters: Sizes of the hidden layers of the cumulative.
      init_scale: Width of the density at first; most values should lie within.
      seed: Seed of the initial state.
      **kwargs: As for `keras.layers.Layer`; `dtype` is float32.
    """

    def __init__(
        self, *, num_filters: tuple[int, ...] = (3, 3), init_scale: float = 10.0, seed: int = 0, **kwargs: Any
    ):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_filters = tuple(num_filters)
        self.init_scale = float(init_scale)
        self.seed = int(seed)

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Create the cumulative's weights, each of shape [outputs, inputs, channels] or [outputs, channels]."""
        channels = input_shape[-1]
        sizes = (1, *self.num_filters, 1)
        scale = self.init_scale ** (1 / (len(sizes) - 1))
        self._matrices, self._biases, self._factors = [], [], []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            first = keras.initializers.Constant(math.log(math.expm1(1 / scale / outputs)))
            matrix = self.add_weight(name=f"matrix_{index}", shape=(outputs, inputs, channels), initializer=first)
            self._matrices.append(matrix)
            bias = self.add_weight(name=f"bias_{index}", shape=(outputs, channels), initializer="zeros")
            bias.assign(np.random.default_rng([self.seed, index]).uniform(-0.5, 0.5, (outputs, channels)))
            self._biases.append(bias)
            if index < len(self.num_filters):
                self._factors.append(
                    self.add_weight(name=f"factor_{index}", shape=(outputs, channels), initializer="zeros")
                )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Return the logits of the cumulative at float32[..., channels], of the same shape."""
        return self._logits(inputs)[0]

    def _logits(self, inputs: Any) -> tuple[Any, Any]:
        """Return the logits of the cumulative and their derivative, which costs nothing if it is not used.

        Sums over the few filters are written out, so that XLA compiles all of it to one loop.
        """
        values, slopes = [inputs], [1.0]
        for index, (matrix, bias) in enumerate(zip(self._matrices, self._biases, strict=True)):
            weights = ops.softplus(matrix)
            values = [value + bias[row] for row, value in enumerate(_weighted_sums(weights, values))]
            slopes = _weighted_sums(weights, slopes)
            if index < len(self._factors):
                factors = ops.tanh(self._factors[index])
                curved = [ops.tanh(value) for value in values]
                values = [value + factors[row] * curved[row] for row, value in enumerate(values)]
                slopes = [
                    slope * (1 + factors[row] * (1 - ops.square(curved[row]))) for row, slope in enumerate(slopes)
                ]
        return values[0], slopes[0]

    def log_prob(self, y: Any, scale: Any = 1.0, shift: Any = 0.0) -> Any:
        """Return the log-density in nats of values plus uniform noise: of integers, their log-probability.

        Args:
          y: float32[..., channels].
          scale: What the cumulative's logits are multiplied by.
          shift: What is added to the product.

        Returns:
          float32[..., channels].
        """
        upper, lower = (self(y + side) * scale + shift for side in (0.5, -0.5))
        # With upper and lower logits u and l, sigmoid(u) - sigmoid(l) = sigmoid(u) * sigmoid(-l) * (1 - exp(l - u)).
        distance = ops.maximum(upper - lower, _LEAST_DISTANCE)
        return ops.log_sigmoid(upper) + ops.log_sigmoid(-lower) + ops.log(-ops.expm1(-distance))

    def tables(self, precision: int = DEFAULT_PRECISION) -> RangeCodingTables:
        """Return the range coding tables of integers, as tensorflow-compression builds them.

        Args:
          precision: 1 to 16.
        """
        tail_logit = math.log(_TAIL_MASS / 2 / (1 - _TAIL_MASS / 2))
        lowest = np.floor(self._where_logits_are(tail_logit)).astype(np.int64)
        highest = np.ceil(self._where_logits_are(-tail_logit)).astype(np.int64)
        lengths = highest - lowest + 1
        values = (np.arange(lengths.max())[:, None] + lowest).astype(self.compute_dtype)
        upper, lower = (ops.convert_to_numpy(self(values + side)) for side in (0.5, -0.5))
        # To the right of the median, survival functions are more precise.
        right = upper > 0
        probabilities = np.where(right, _sigmoid(-lower) - _sigmoid(-upper), _sigmoid(upper) - _sigmoid(lower))
        pmf = [probabilities[:length, channel] for channel, length in enumerate(lengths)]
        return RangeCodingTables.from_pmf(pmf, lowest.astype(np.int32), precision)

    def _where_logits_are(self, target: float) -> np.ndarray:
        """Return, for each channel, where the cumulative's logits are `target`, [channels] of the layer's type.

        It is tensorflow-compression's search, step by step. A table reaches to the next integers outside.
        """
        dtype, shape = np.dtype(self.compute_dtype), self._biases[0].shape[-1]
        target, first_rate, nearly_0 = dtype.type(target), dtype.type(0.1), dtype.type(1e-20)
        place, momentum = np.zeros(shape, dtype), np.zeros(shape, dtype)
        squares, steps = np.ones(shape, dtype), np.zeros(shape, np.int32)
        best, least = place, np.full(shape, np.finfo(dtype).max)
        distance = least
        while distance.max() > _TAIL_TOLERANCE and steps.min() < _TAIL_STEPS:
            logits, slopes = (ops.convert_to_numpy(each) for each in self._logits(ops.convert_to_tensor(place)))
            distance = np.abs(logits - target)
            best, least = np.where(distance < least, place, best), np.minimum(distance, least)
            gradient = np.sign(logits - target) * slopes
            passed = (steps > 0) | (momentum * gradient < 0)
            momentum, squares = (momentum + gradient) / 2, (squares + np.square(gradient)) / 2
            rate = np.sqrt((steps + 1).astype(dtype))
            place = place - first_rate * momentum / (rate * np.sqrt(squares) + nearly_0)
            steps = steps + passed
        return best

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {
            **super().get_config(),
            "num_filters": self.num_filters,
            "init_scale": self.init_scale,
            "seed": self.seed,
        }


def _weighted_sums(weights: Any, values: Sequence[Any]) -> list[Any]:
    """Return a weighted sum of values for each row of weights, [rows, len(values), channels]."""
    rows = range(weights.shape[0])
    return [sum(weights[row, column] * value for column, value in enumerate(values)) for row in rows]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # far out, it is 0
        return 1 / (1 + np.exp(-logits))
