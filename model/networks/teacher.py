"""The teacher: networks trained without a rate, from whose probabilities and activations a compressed one learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel

# A teacher's head says which errors of its activations matter: those that change its logits. As tasks change, errors in
# all directions matter this much besides, relative to the mean.
_OTHER_DIRECTIONS = 0.1


class TeacherError(VidpressError, ValueError):
    """A model that cannot teach: the message names the cause and the fix."""


class Teacher:
    """Class probabilities of one or more frozen models, averaged, and their activations.

    Labels name the few classes of a labelled video. A teacher gives the probability of every class for any input. A
    network that learns these probabilities is not misled by the labels of a small training set.

    Args:
      models: Models with a task head, trained without a rate (`lmbda=0`): their activations are not rounded.
      spec: The features that the network to be taught takes.
      num_classes: How many classes it has.
      activations: Whether the activations are wanted, too.
      mixed_precision: Multiply in bfloat16.

    Attributes:
      variables: The models' weights, which do not change.
      num_activations: How many activations all models have.

    Raises:
      TeacherError: If a model has no head, takes other features or has other classes, or if there is no model.
    """

    def __init__(
        self,
        models: Sequence[FrozenModel],
        spec: FeatureSpec,
        num_classes: int,
        *,
        activations: bool = False,
        mixed_precision: bool = False,
    ):
        if not models:
            raise TeacherError("A teacher needs at least one model.")
        networks = []
        for model in models:
            head = head_of(model)
            if not model.spec.gives_same_input(spec):
                raise TeacherError(
                    f"Teacher {model.model_id} takes {model.spec}, not {spec}: use one for the same features."
                )
            if head[0].shape[1] != num_classes:
                raise TeacherError(
                    f"Teacher {model.model_id} has {head[0].shape[1]} classes, not {num_classes}: "
                    "use one for the same task."
                )
            networks.append([*model.hidden, head])
        self._dtype = "bfloat16" if mixed_precision else "float32"
        self._networks = [
            [(self._constant(kernel, self._dtype), self._constant(bias, "float32")) for kernel, bias in layers]
            for layers in networks
        ]
        self._bases = [self._constant(error_root(model), "float32") for model in models] if activations else []
        self.num_activations = sum(model.num_dims for model in models)
        self.variables = [each for network in self._networks for layer in network for each in layer] + self._bases

    @staticmethod
    def _constant(value: np.ndarray, dtype: str) -> keras.Variable:
        return keras.Variable(ops.cast(value, dtype), dtype=dtype, trainable=False)

    def __call__(self, x: Any) -> Any:
        """Return the class probabilities of inputs.

        Args:
          x: float32[batch, input_size].

        Returns:
          float32[batch, num_classes], in (0, 1), without a gradient.
        """
        probabilities = [ops.sigmoid(self._outputs(network, x)) for network in self._networks]
        return ops.stop_gradient(sum(probabilities) / len(probabilities))

    def activations(self, x: Any) -> Any:
        """Return the models' last activations, in bases in which all errors matter alike.

        How much an error matters is known from a model's head: `error @ (W W^T / mean + I / 10) @ error`, with the
        head's kernel W and the mean of the diagonal of `W W^T`. So activations are multiplied by that matrix's root.

        Args:
          x: float32[batch, input_size].

        Returns:
          float32[batch, num_activations], without a gradient.
        """
        hidden = (ops.relu(self._outputs(network[:-1], x)) for network in self._networks)
        turned = [ops.matmul(each, basis) for each, basis in zip(hidden, self._bases, strict=True)]
        return ops.stop_gradient(ops.concatenate(turned, axis=1))

    def _outputs(self, network: Sequence[tuple[keras.Variable, keras.Variable]], x: Any) -> Any:
        for index, (kernel, bias) in enumerate(network):
            product = ops.matmul(ops.cast(ops.relu(x) if index else x, self._dtype), kernel)
            x = ops.cast(product, "float32") + bias
        return x


def head_of(model: FrozenModel) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel and the bias of a teacher's task head.

    Raises:
      TeacherError: If it has none.
    """
    if model.head is None:
        raise TeacherError(f"Teacher {model.model_id} has no task head: train it with one.")
    return model.head


def error_root(model: FrozenModel) -> np.ndarray:
    """Return float32[num_dims, num_dims], by which `Teacher.activations` multiplies a model's activations.

    Raises:
      TeacherError: If it has no task head.
    """
    kernel = head_of(model)[0].astype(np.float64)
    metric = kernel @ kernel.T
    metric /= max(np.trace(metric) / len(metric), 1e-12)
    values, vectors = np.linalg.eigh(metric + _OTHER_DIRECTIONS * np.eye(len(metric)))
    return ((vectors * np.sqrt(values)) @ vectors.T).astype(np.float32)
