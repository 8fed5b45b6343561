"""The prior's banks: clusters of examples, by which dimensions are on, each with a prior of its own."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

# Banks begin at this call: before, activations change too fast for clusters of them.
_BANKS_FROM = 150
# Counts of banks decay with every batch, as if only about this many of the last videos were counted.
_BANK_HORIZON = 20_000
# To a bank's counts, this many rows of what is common to all banks are added; fewer in the first calls, when each bank
# comes from a single video.
_COMMON_ROWS = 8.0
_COMMON_ROWS_AT_FIRST = 2.0
_FIRST_CALLS = 60
_COMMON_MOMENTUM = 0.98
_LEAST_PROBABILITY = 1e-5


@keras.saving.register_keras_serializable(package="vidpress")
class PriorBanks(keras.layers.Layer):
    """What banks add to a prior's bits.

    Bank b multiplies the odds of channel d being on, that is of rounding to other than 0, by `exp(tilt[b, d])`. To
    normalise the probabilities, `log_norm[b]` nats are added at each position.

    A prior may depend on a variable, such as lmbda (`many_rates`). Then how often a channel is on in all banks
    together, and `log_norm`, are kept at some anchors, and each example has weights of the anchors, which add up to 1.

    Args:
      num_banks: How many banks.
      num_anchors: How many anchors; with one, examples have no weights.
      **kwargs: As for `keras.layers.Layer`; `dtype` is float32.
    """

    def __init__(self, num_banks: int, num_anchors: int = 1, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_banks = int(num_banks)
        self.num_anchors = int(num_anchors)

    def build(self, input_shape: tuple[int, ...]) -> None:
        """Create the counts, all 0."""
        channels = input_shape[-1]

        def state(name: str, *shape: int) -> keras.Variable:
            return self.add_weight(name=name, shape=shape, initializer="zeros", trainable=False)

        self._on_count = state("on_count", self.num_banks, channels)
        self._position_count = state("position_count", self.num_banks, self.num_anchors)
        self._common = state("common", self.num_anchors, channels)  # how often a channel is on
        self._tilt = state("tilt", self.num_banks, channels)
        self._log_norm = state("log_norm", self.num_anchors, self.num_banks)
        self.built = True

    def call(self, z: Any, z_hat: Any, weights: Any = None) -> Any:
        """Return how many more bits each example takes than under the prior alone, float32[batch].

        `clip(|z|, 0, 1)` is the probability that `z` plus noise is on, so that a gradient reaches values that only the
        noise would switch on or off.

        Args:
          z: float32[batch, ..., channels].
          z_hat: `z` rounded.
          weights: float32[batch, num_anchors]; None with one anchor.
        """
        weights = _weights(weights, z)
        on, positions = _sum_positions(ops.cast(ops.not_equal(z_hat, 0), "float32"))
        bank = self._cheapest(on, positions, weights)
        probably_on, _ = _sum_positions(ops.clip(ops.abs(z), 0.0, 1.0))
        saved = ops.sum(ops.matmul(bank, self._tilt) * probably_on, axis=1)
        log_norm = ops.sum(ops.matmul(weights, self._log_norm) * bank, axis=1)
        return (positions * log_norm - saved) / math.log(2)

    def update(self, z_hat: Any, call: Any, weights: Any = None) -> None:
        """Update the banks by a batch, once banks have begun: a step of hard expectation maximisation.

        Args:
          z_hat: float32[batch, ..., channels].
          call: The number of the training call, from 1.
          weights: As for `call`.
        """
        weights = _weights(weights, z_hat)
        on, positions = _sum_positions(ops.cast(ops.not_equal(z_hat, 0), "float32"))
        batch_size = ops.cast(ops.shape(on)[0], "float32")
        total = ops.expand_dims(ops.sum(weights, axis=0), 1)
        mean = ops.matmul(ops.transpose(weights), on) / ops.maximum(total, 1e-6) / positions
        momentum = ops.where(ops.equal(call, 1), 0.0, _COMMON_MOMENTUM)
        common = momentum * self._common + (1 - momentum) * mean
        if_begun = ops.greater(call, _BANKS_FROM)
        bank = self._cheapest(on, positions, weights)
        of_bank = ops.transpose(bank)
        keep = ops.maximum(1 - batch_size / _BANK_HORIZON, 0.0)
        # Until banks begin, counts are those of the last examples, one for each bank.
        last = ops.concatenate([_COMMON_ROWS_AT_FIRST * on, self._on_count], axis=0)[: self.num_banks]
        on_count = ops.where(if_begun, keep * self._on_count + ops.matmul(of_bank, on), last)
        last = ops.concatenate([_COMMON_ROWS_AT_FIRST * positions * weights, self._position_count], axis=0)
        position_count = ops.where(
            if_begun,
            keep * self._position_count + positions * ops.matmul(of_bank, weights),
            last[: self.num_banks],
        )
        rows = positions * ops.where(ops.greater(call, _BANKS_FROM + _FIRST_CALLS), _COMMON_ROWS, _COMMON_ROWS_AT_FIRST)
        count = ops.sum(position_count, axis=1, keepdims=True)
        # How often a channel would be on in a bank's examples if they were like all others at their anchors.
        bounded = _within(common)
        shares = position_count / ops.maximum(count, 1e-6)
        expected = _within(ops.matmul(shares, bounded))
        p = _within((on_count + rows * expected) / (count + rows))
        tilt = ops.where(ops.greater_equal(call, _BANKS_FROM), _log_odds(p) - _log_odds(expected), 0.0)
        self._common.assign(common)
        self._on_count.assign(on_count)
        self._position_count.assign(position_count)
        self._tilt.assign(tilt)
        self._log_norm.assign(ops.sum(ops.log1p(ops.expand_dims(bounded, 1) * ops.expm1(tilt)), axis=2))

    def _cheapest(self, on: Any, positions: Any, weights: Any) -> Any:
        """Return which bank has the shortest code for each example, one-hot, float32[batch, num_banks].

        Args:
          on: float32[batch, channels], at how many positions a channel is on.
          positions: How many there are.
          weights: As for `call`.
        """
        saved = ops.matmul(ops.stop_gradient(on), ops.transpose(self._tilt))
        bank = ops.argmax(saved - positions * ops.matmul(weights, self._log_norm), axis=1)
        return ops.one_hot(bank, self.num_banks, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {**super().get_config(), "num_banks": self.num_banks, "num_anchors": self.num_anchors}


def _weights(weights: Any, z: Any) -> Any:
    return ops.ones((ops.shape(z)[0], 1)) if weights is None else weights


def _sum_positions(values: Any) -> tuple[Any, float]:
    """Sum over all axes but the first and the last; also return over how many positions."""
    axes = tuple(range(1, len(values.shape) - 1))
    positions = math.prod(ops.shape(values)[axis] for axis in axes) if axes else 1
    return (ops.sum(values, axis=axes) if axes else values), ops.cast(positions, "float32")


def _within(p: Any) -> Any:
    return ops.clip(p, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)


def _log_odds(p: Any) -> Any:
    return ops.log(p) - ops.log1p(-p)
