"""What a network learns besides its task: to give back its input, or a teacher's activations, from what is stored."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from vidpress.model.networks import noise

# Keeps the random numbers of what is dropped apart from the bottleneck's noise of the same seed.
_STREAM = 1 << 30


@keras.saving.register_keras_serializable(package="vidpress")
class InputDropout(keras.layers.Layer):
    """Sets a share of the numbers of `x` to 0 in training, and scales the others up so that the mean stays the same.

    What is dropped follows from `seed` and a count of the training calls, which is among the weights, on any backend.

    Args:
      rate: The share, within [0, 1).
      seed: Seed of what is dropped.
      **kwargs: As for `keras.layers.Layer`.
    """

    def __init__(self, rate: float, *, seed: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate={rate} must lie in [0, 1).")
        self.rate = float(rate)
        self.seed = int(seed)

    def build(self, input_shape: Any) -> None:
        """Create the count of calls."""
        self._calls = self.add_weight(name="calls", shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return float32[batch, input_size] of the same."""
        if not training:
            return inputs
        self._calls.assign(self._calls + 1)
        drawn = noise.uniform(ops.shape(inputs), self.seed ^ _STREAM, ops.convert_to_tensor(self._calls))
        return inputs * ops.cast(drawn >= self.rate, "float32") / (1 - self.rate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments; `from_config` takes them."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


class Decoder(keras.layers.Layer):
    """Gives back a target from decoded features: the input, or activations of a teacher. It is linear.

    Its loss is `weight` times the share of the target's variance, in the batch, that its squared error is. So a weight
    is in units of the task's loss: what it costs to know nothing of the target but its mean.

    Args:
      weight: What all of the target is worth.
      size: Numbers of the target.
      seed: Seed of the initial weights.
      **kwargs: As for `keras.layers.Layer`; `dtype` is float32.
    """

    def __init__(self, weight: float, size: int, *, seed: int = 0, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.weight = float(weight)
        self.size = int(size)
        self.seed = int(seed)

    def build(self, input_shape: Any) -> None:
        """Create the weights."""
        initializer = keras.initializers.GlorotUniform(self.seed)
        self._kernel = self.add_weight(name="kernel", shape=(input_shape[-1], self.size), initializer=initializer)
        self._bias = self.add_weight(name="bias", shape=(self.size,), initializer="zeros")
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Return what is given back, float32[batch, size], of features float32[batch, num_dims]."""
        return ops.matmul(ops.cast(inputs, "float32"), self._kernel) + self._bias

    def loss(self, features: Any, target: Any) -> Any:
        """Return the loss, a float32 scalar, of features and the target float32[batch, size], which has no gradient."""
        target = ops.stop_gradient(ops.cast(target, "float32"))
        variance = ops.sum(ops.square(target - ops.mean(target, axis=0, keepdims=True)))
        return self.weight * ops.sum(ops.square(self(features) - target)) / (variance + 1e-12)
