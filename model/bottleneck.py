"""The bottleneck: a Keras layer that rounds activations and charges for the bits that they take.

It is the compression of Singh et al., "End-to-end Learning of Compressible Features" (ICIP 2020), section 2, and
goes after any activation of any model.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
import tensorflow_compression as tfc


@tf.keras.utils.register_keras_serializable(package="vidpress")
class Bottleneck(tf.keras.layers.Layer):
    """Rounds its input `z` to integers `z_hat`, and adds `lmbda * bits` to the model's loss (eq. 6 of the paper).

    The output is `z_hat`, with straight-through gradients: what comes after it is trained on what a decoder will
    get. The bits are those of `z` plus uniform noise under a learned prior, a differentiable upper bound on what a
    range coder needs for `z_hat` with that prior's tables; outside training, those of `z_hat`. The prior is fully
    factorised: each channel (the last axis) has a distribution of its own, a `tfc.DeepFactorized`, which all other
    axes share: positions of a spatial input are alike (section 2.2).

    Bits are counted an example: summed over all axes but the first, averaged over the first. Of the mean this layer
    keeps a metric, `bits`, which `fit` reports as `<layer name>_bits`.

    Noise follows from `seed` and a count of the training calls, which is among the weights: a model that goes on from
    saved weights gets the noise that it would have got.

    The layer computes in float32 whatever the mixed-precision policy: float16 does not hold the integers beyond 2048.

    Args:
      lmbda: What a bit costs in units of the task's loss, above 0. Without a rate there is no reason to round: leave
        the layer out.
      seed: Of the noise and the prior's first state.
      num_filters: Sizes of the hidden layers of the prior's cumulative (`tfc.DeepFactorized`).
      init_scale: Width of the prior at first; most of `z` should lie within (`tfc.DeepFactorized`).
      **kwargs: Of `tf.keras.layers.Layer`; `dtype` is float32.
    """

    def __init__(
        self,
        lmbda: float,
        *,
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
        self.seed = int(seed)
        self.num_filters = tuple(num_filters)
        self.init_scale = float(init_scale)
        self.bits = tf.keras.metrics.Mean(name=f"{self.name}_bits")

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
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return `z_hat`, float32 of the shape of `inputs`, and add the loss."""
        z = tf.cast(inputs, tf.float32)
        z_hat = tfc.round_st(z)
        y = z + self._noise(tf.shape(z)) if training else tf.stop_gradient(z_hat)
        bits = tf.reduce_mean(self.information(y))
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
            "seed": self.seed,
            "num_filters": self.num_filters,
            "init_scale": self.init_scale,
        }
