"""The bottleneck: a Keras layer that rounds activations and charges for the bits that they take.

It is the compression of Singh et al., "End-to-end Learning of Compressible Features" (ICIP 2020), section 2, and
goes after any activation of any model.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tensorflow_compression as tfc

# Banks begin at this call: before, activations change too fast for clusters of them.
_BANKS_FROM = 150
# Counts of a bank forget as if they were of the last so many videos.
_BANK_HORIZON = 20_000
# A bank's counts are joined by so many rows of what is common to all; by fewer in the first calls, when each bank comes
# from a single video.
_COMMON_ROWS = 8.0
_COMMON_ROWS_AT_FIRST = 2.0
_FIRST_CALLS = 60
_COMMON_MOMENTUM = 0.98
_LEAST_PROBABILITY = 1e-5


@tf.keras.utils.register_keras_serializable(package="vidpress")
class Bottleneck(tf.keras.layers.Layer):
    """Rounds its input `z` to integers `z_hat`, and adds `lmbda * bits` to the model's loss (eq. 6 of the paper).

    The output is `z_hat`, with straight-through gradients: what comes after it is trained on what a decoder will
    get. The bits are those of `z` plus uniform noise under a learned prior, a differentiable upper bound on what a
    range coder needs for `z_hat` with that prior's tables; outside training, those of `z_hat`. The prior is fully
    factorised: each channel (the last axis) has a distribution of its own, a `tfc.DeepFactorized`, which all other
    axes share: positions of a spatial input are alike (section 2.2).

    With banks, the prior is a mixture: each example is charged by the bank that has the shortest code for it, as a
    range coder with banks of tables does (`table_banks`). In a bank, the odds that a channel rounds to other than 0 are
    the prior's times a factor. Banks are a clustering of the examples by code length, which follows the network in the
    course of training; and the network learns to switch on together what a bank expects together.

    Bits are counted an example: summed over all axes but the first, averaged over the first. Of the mean this layer
    keeps a metric, `bits`, which `fit` reports as `<layer name>_bits`.

    Noise follows from `seed` and a count of the training calls, which is among the weights: a model that goes on from
    saved weights gets the noise that it would have got.

    The layer computes in float32 whatever the mixed-precision policy: float16 does not hold the integers beyond 2048.

    Args:
      lmbda: What a bit costs in units of the task's loss, above 0. Without a rate there is no reason to round: leave
        the layer out.
      num_banks: How many banks there are; with 1 the prior is the paper's.
      seed: Of the noise and the prior's first state.
      num_filters: Sizes of the hidden layers of the prior's cumulative (`tfc.DeepFactorized`).
      init_scale: Width of the prior at first; most of `z` should lie within (`tfc.DeepFactorized`).
      **kwargs: Of `tf.keras.layers.Layer`; `dtype` is float32.
    """

    def __init__(
        self,
        lmbda: float,
        *,
        num_banks: int = 1,
        seed: int = 0,
        num_filters: tuple[int, ...] = (3, 3),
        init_scale: float = 10.0,
        **kwargs: Any,
    ):
        if not (lmbda > 0 and math.isfinite(lmbda)):
            raise ValueError(f"lmbda={lmbda} must be above 0: to train without a rate, leave the layer out.")
        if kwargs.setdefault("dtype", "float32") != "float32":
            raise ValueError(f"dtype={kwargs['dtype']!r} must be float32: smaller types do not hold all integers.")
        super().__init__(**kwargs)
        self.lmbda = float(lmbda)
        if num_banks < 1:
            raise ValueError(f"num_banks={num_banks} must be at least 1.")
        self.num_banks = int(num_banks)
        self.seed = int(seed)
        self.num_filters = tuple(num_filters)
        self.init_scale = float(init_scale)
        self.bits = tf.keras.metrics.Mean(name=f"{self.name}_bits")

    _num_anchors = 1  # of what the prior depends on (`PriorBanks`)

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the prior: one distribution for each channel."""
        channels = tf.TensorShape(input_shape)[-1]
        if channels is None:
            raise ValueError(f"The last axis of input_shape={input_shape} must be known: each channel has a prior.")
        self.prior = tfc.NoisyDeepFactorized(
            batch_shape=(channels,), num_filters=self.num_filters, init_scale=self.init_scale
        )
        for index, variable in enumerate(self.prior.trainable_variables):
            if "bias" in variable.name:  # The distribution would draw these with an unknown seed.
                noise = tf.random.stateless_uniform(variable.shape, [self.seed, -1 - index], -0.5, 0.5)
                variable.assign(noise)
        self._calls = self.add_weight("calls", shape=(), dtype=tf.int64, initializer="zeros", trainable=False)
        if self.num_banks > 1:
            self._banks = PriorBanks(self.num_banks, channels, self._num_anchors)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return `z_hat`, float32 of the shape of `inputs`, and add the loss."""
        z = tf.cast(inputs, tf.float32)
        z_hat = tfc.round_st(z)
        y = z + self._noise(tf.shape(z)) if training else tf.stop_gradient(z_hat)
        bits = self.information(y)
        if self.num_banks > 1:
            bits += self._banks.information(z, z_hat)
            if training:
                self._banks.update(z_hat, self._calls)
        bits = tf.reduce_mean(bits)
        self.add_loss(self.lmbda * bits)
        self.bits.update_state(bits)
        return z_hat

    def information(self, y: tf.Tensor) -> tf.Tensor:
        """Return the bits of each example under the prior.

        Args:
          y: float32[batch, ..., channels], activations plus noise, or rounded.

        Returns:
          float32[batch].
        """
        log_probs = self.prior.log_prob(y)
        return tf.reduce_sum(log_probs, axis=tuple(range(1, y.shape.rank))) / -math.log(2)

    def _noise(self, shape: tf.Tensor) -> tf.Tensor:
        call = self._calls.assign_add(1)
        return tf.random.stateless_uniform(shape, tf.stack([tf.cast(self.seed, tf.int64), call]), -0.5, 0.5)

    def compute_output_shape(self, input_shape: tf.TensorShape) -> tf.TensorShape:
        """Return the input's shape."""
        return tf.TensorShape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {
            **super().get_config(),
            "lmbda": self.lmbda,
            "num_banks": self.num_banks,
            "seed": self.seed,
            "num_filters": self.num_filters,
            "init_scale": self.init_scale,
        }


class PriorBanks(tf.Module):
    """What banks add to a prior's bits.

    Bank b multiplies the odds of channel d being on, that is of rounding to other than 0, by `exp(tilt[b, d])`. For
    what that takes from all probabilities, `log_norm[b]` nats are added at each position.

    A prior may depend on something, as on lmbda (`many_rates`). How often a channel is on without regard to banks, and
    `log_norm`, are then kept at some anchors, between which each example has weights that add up to 1.

    Args:
      num_banks: How many banks.
      channels: How many channels.
      num_anchors: How many anchors; with one, examples have no weights.
    """

    def __init__(self, num_banks: int, channels: int, num_anchors: int = 1):
        super().__init__()
        self._num_banks = num_banks

        def state(name: str, *shape: int) -> tf.Variable:
            return tf.Variable(tf.zeros(shape), trainable=False, name=name)

        self._on_count = state("bank_on_count", num_banks, channels)
        self._position_count = state("bank_position_count", num_banks, num_anchors)
        self._common = state("bank_common", num_anchors, channels)  # how often a channel is on
        self._tilt = state("bank_tilt", num_banks, channels)
        self._log_norm = state("bank_log_norm", num_anchors, num_banks)

    def information(self, z: tf.Tensor, z_hat: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
        """Return the bits that each example takes more than by the prior alone, float32[batch].

        Of `z` plus noise, `clip(|z|, 0, 1)` is how probably it is on, so that a gradient reaches what the noise alone
        would switch. `weights` are float32[batch, num_anchors], or none with one anchor.
        """
        weights = tf.ones((tf.shape(z)[0], 1)) if weights is None else weights
        on, positions = _sum_positions(tf.cast(z_hat != 0, tf.float32))
        bank = self._cheapest(on, positions, weights)
        probably_on, _ = _sum_positions(tf.clip_by_value(tf.abs(z), 0.0, 1.0))
        saved = tf.reduce_sum(tf.gather(self._tilt, bank) * probably_on, axis=1)
        log_norm = tf.gather(tf.matmul(weights, self._log_norm), bank, batch_dims=1)
        return (positions * log_norm - saved) / math.log(2)

    def update(self, z_hat: tf.Tensor, call: tf.Tensor, weights: tf.Tensor | None = None) -> None:
        """Let the banks follow a batch, once it is their time: a step of hard expectation maximisation."""
        weights = tf.ones((tf.shape(z_hat)[0], 1)) if weights is None else weights
        on, positions = _sum_positions(tf.cast(tf.stop_gradient(z_hat) != 0, tf.float32))
        batch_size = tf.cast(tf.shape(on)[0], tf.float32)
        total = tf.reduce_sum(weights, axis=0)[:, None]
        mean = tf.matmul(weights, on, transpose_a=True) / tf.maximum(total, 1e-6) / positions
        momentum = tf.where(call == 1, 0.0, _COMMON_MOMENTUM)
        self._common.assign(momentum * self._common + (1 - momentum) * mean)
        if_begun = call > _BANKS_FROM
        bank = tf.one_hot(self._cheapest(on, positions, weights), self._num_banks)
        keep = tf.maximum(1 - batch_size / _BANK_HORIZON, 0.0)
        # Until banks begin, counts are those of the last examples, one for each bank.
        last = tf.concat([_COMMON_ROWS_AT_FIRST * on, self._on_count], axis=0)[: self._num_banks]
        self._on_count.assign(tf.where(if_begun, keep * self._on_count + tf.matmul(bank, on, transpose_a=True), last))
        self._position_count.assign(
            tf.where(
                if_begun,
                keep * self._position_count + positions * tf.matmul(bank, weights, transpose_a=True),
                tf.concat([_COMMON_ROWS_AT_FIRST * positions * weights, self._position_count], 0)[: self._num_banks],
            )
        )
        rows = positions * tf.where(call > _BANKS_FROM + _FIRST_CALLS, _COMMON_ROWS, _COMMON_ROWS_AT_FIRST)
        common = _within(self._common)
        count = tf.reduce_sum(self._position_count, axis=1, keepdims=True)
        # What would be on in a bank's examples if they were like all others at their anchors.
        expected = _within(tf.matmul(tf.math.divide_no_nan(self._position_count, count), common))
        p = _within((self._on_count + rows * expected) / (count + rows))
        tilt = tf.where(call >= _BANKS_FROM, _log_odds(p) - _log_odds(expected), 0.0)
        self._tilt.assign(tilt)
        self._log_norm.assign(tf.reduce_sum(tf.math.log1p(common[:, None] * tf.math.expm1(tilt)), axis=2))

    def _cheapest(self, on: tf.Tensor, positions: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Return the bank with the shortest code for each example, given at how many positions a channel is on."""
        saved = tf.matmul(tf.stop_gradient(on), self._tilt, transpose_b=True)
        return tf.argmax(saved - positions * tf.matmul(weights, self._log_norm), axis=1)


def _sum_positions(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum over all axes but the first and the last; also return over how many positions."""
    positions = tf.reduce_prod(tf.shape(values)[1:-1])
    return tf.reduce_sum(values, axis=tuple(range(1, values.shape.rank - 1))), tf.cast(positions, tf.float32)


def _within(p: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(p, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)


def _log_odds(p: tf.Tensor) -> tf.Tensor:
    return tf.math.log(p) - tf.math.log1p(-p)
