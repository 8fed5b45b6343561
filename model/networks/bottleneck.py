"""The bottleneck: a Keras layer that rounds activations and charges for the bits that they take.

It is the compression of Singh et al., "End-to-end Learning of Compressible Features" (ICIP 2020), section 2, and
goes after any activation of any model.
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from vidpress.model.networks import noise
from vidpress.model.networks.prior import DeepFactorized
from vidpress.model.networks.prior_banks import PriorBanks
from vidpress.model.tables.range_coding_tables import RangeCodingTables


@keras.saving.register_keras_serializable(package="vidpress")
class Bottleneck(keras.layers.Layer):
    """Rounds its input `z` to integers `z_hat`, and adds `lmbda * bits` to the model's loss (eq. 6 of the paper).

    The output is `z_hat`, with straight-through gradients: the layers after it are trained on what a decoder will get.
    In training, the bits are those of `z` plus uniform noise under a learned prior, a differentiable upper bound on
    what a range coder needs for `z_hat` with that prior's tables; otherwise they are those of `z_hat`. The prior is
    fully factorised: each channel (the last axis) has its own distribution (`DeepFactorized`), and all other axes share
    it, because the positions of a spatial input are alike (section 2.2).

    With banks, the prior is a mixture: the bits of each example are those of the bank that has the shortest code for
    it, as in a range coder with banks of tables (`model/tables/`). In a bank, the odds that a channel rounds to other
    than 0 are the prior's times a factor. Banks are a clustering of the examples by code length, which follows the
    network during training; and the network learns to switch on together the channels that a bank expects together.

    Bits are counted for each example: summed over all axes but the first, averaged over the first. The mean is kept in
    a metric, `bits`, which `fit` reports as `<layer name>_bits`. (On JAX, `fit` does not update the metrics of layers:
    call the model on a batch, and read `bits.result()`.)

    Noise follows from `seed` and a count of the training calls, which is among the weights: a model that resumes from
    saved weights gets the same noise as one that did not stop, on any backend.

    The layer computes in float32 whatever the mixed-precision policy: float16 cannot represent all integers above 2048.

    Args:
      lmbda: Cost of a bit in units of the task's loss, above 0. Without a rate there is no reason to round: leave the
        layer out.
      num_banks: How many banks there are; with 1, the prior is the paper's.
      seed: Seed of the noise and of the prior's initial state.
      num_filters: Sizes of the hidden layers of the prior's cumulative.
      init_scale: Width of the prior at first; most of `z` should lie within.
      **kwargs: As for `keras.layers.Layer`; `dtype` is float32.
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
        dtype = kwargs.setdefault("dtype", "float32")
        if getattr(dtype, "name", dtype) != "float32":
            raise ValueError(f"dtype={dtype!r} must be float32: smaller types do not represent all integers.")
        super().__init__(**kwargs)
        self.lmbda = float(lmbda)
        if num_banks < 1:
            raise ValueError(f"num_banks={num_banks} must be at least 1.")
        self.num_banks = int(num_banks)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must be from 0 to {2**32 - 1:,}.")
        self.seed = int(seed)
        self.num_filters = tuple(num_filters)
        self.init_scale = float(init_scale)
        self.prior = DeepFactorized(num_filters=self.num_filters, init_scale=self.init_scale, seed=self.seed)
        self.bits = keras.metrics.Mean(name=f"{self.name}_bits")
        self._banks: PriorBanks | None = None

    _num_anchors = 1  # anchors of the variable that the prior depends on (`PriorBanks`)

    def build(self, input_shape: Any) -> None:
        """Create the prior: one distribution for each channel."""
        if input_shape[-1] is None:
            raise ValueError(f"The last axis of input_shape={input_shape} must be known: each channel has a prior.")
        self.prior.build(input_shape)
        self._calls = self.add_weight(name="calls", shape=(), dtype="int32", initializer="zeros", trainable=False)
        if self.num_banks > 1:
            self._banks = PriorBanks(self.num_banks, self._num_anchors)
            self._banks.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return `z_hat`, float32 of the shape of `inputs`, and add the loss."""
        z, z_hat, y = self._rounded(inputs, training)
        bits = self.information(y) + self._bits_of_banks(z, z_hat, training)
        self._charge(self.lmbda * ops.mean(bits), bits)
        return z_hat

    def information(self, y: Any) -> Any:
        """Return the bits of each example under the prior.

        Args:
          y: float32[batch, ..., channels], activations plus noise, or rounded.

        Returns:
          float32[batch].
        """
        return to_bits(self.prior.log_prob(y))

    def tables(self) -> RangeCodingTables:
        """Return the range coding tables of the prior (`DeepFactorized.tables`).

        Raises:
          ValueError: If the prior depends on lmbda.
        """
        return self.prior.tables()

    def _rounded(self, inputs: Any, training: bool) -> tuple[Any, Any, Any]:
        """Return `z`, `z_hat`, and the values whose bits are counted."""
        z = ops.cast(inputs, "float32")
        z_hat = z + ops.stop_gradient(ops.round(z) - z)  # exactly the integer: the difference of close floats is exact
        if not training:
            return z, z_hat, ops.stop_gradient(z_hat)
        self._calls.assign(self._calls + 1)
        drawn = noise.uniform(ops.shape(z), self.seed, ops.convert_to_tensor(self._calls))
        return z, z_hat, z + (drawn - 0.5)

    def _bits_of_banks(self, z: Any, z_hat: Any, training: bool, weights: Any = None) -> Any:
        if self._banks is None:
            return 0.0
        bits = self._banks(z, z_hat, weights)
        if training:
            self._banks.update(ops.stop_gradient(z_hat), ops.convert_to_tensor(self._calls), weights)
        return bits

    def _charge(self, loss: Any, bits: Any) -> None:
        self.add_loss(loss)
        if _has_state(self.bits):
            self.bits.update_state(ops.stop_gradient(bits))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the input's shape."""
        return input_shape

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


def _has_state(metric: keras.metrics.Metric) -> bool:
    """Return whether a metric can be updated: on JAX, `fit` takes away the state of layers' metrics while it runs."""
    if keras.backend.backend() != "jax":
        return True
    try:
        return all(variable.value is not None for variable in metric.variables)
    except TypeError:  # Keras would initialize it again, with an initializer that it no longer has
        return False


def to_bits(log_probs: Any) -> Any:
    """Sum log-probabilities in nats over all axes but the first: bits, float32[batch]."""
    return ops.sum(log_probs, axis=tuple(range(1, len(log_probs.shape)))) / -math.log(2)


def bottleneck_of(model: keras.Model) -> Bottleneck | None:
    """Return the bottleneck among a model's layers, or None if there is none.

    Raises:
      ValueError: If there are several.
    """
    found = [layer for layer in model.layers if isinstance(layer, Bottleneck)]
    if len(found) > 1:
        raise ValueError(
            f"Model {model.name!r} has {len(found)} Bottleneck layers among its own layers: it may have one."
        )
    return found[0] if found else None
