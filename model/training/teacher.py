"""The teacher: networks trained without a rate, whose class probabilities a compressed network learns to give."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel


class TeacherError(VidpressError, ValueError):
    """A model that cannot teach: the message names the cause and the fix."""


class Teacher(tf.Module):
    """Class probabilities of one or more frozen models, averaged.

    Labels say of a video which few classes it has; a teacher says of any input how likely each class is, also of one
    that nobody labelled. Learning that, a network is not led astray by the labels of a small training set.

    Args:
      models: Models with a task head, trained without a rate (`lmbda=0`): their activations are not rounded.
      spec: The features that the network to be taught takes.
      num_classes: Its classes.
      mixed_precision: Multiply in bfloat16.

    Raises:
      TeacherError: If a model has no head, takes other features or has other classes, or there is none.
    """

    def __init__(
        self, models: Sequence[FrozenModel], spec: FeatureSpec, num_classes: int, *, mixed_precision: bool = False
    ):
        super().__init__()
        if not models:
            raise TeacherError("A teacher needs at least one model.")
        self._dtype = tf.bfloat16 if mixed_precision else tf.float32
        networks = []
        for model in models:
            if model.head is None:
                raise TeacherError(f"Teacher {model.model_id} has no task head: train it without --no_head.")
            if model.spec != spec:
                raise TeacherError(
                    f"Teacher {model.model_id} takes {model.spec}, not {spec}: take one of the same data."
                )
            if model.head[0].shape[1] != num_classes:
                raise TeacherError(
                    f"Teacher {model.model_id} has {model.head[0].shape[1]} classes, not {num_classes}: "
                    "take one of the same task."
                )
            networks.append(
                [
                    (tf.Variable(tf.cast(kernel, self._dtype), trainable=False), tf.Variable(bias, trainable=False))
                    for kernel, bias in (*model.hidden, model.head)
                ]
            )
        self._networks = networks

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Return the class probabilities of inputs.

        Args:
          x: float32[batch, input_size].

        Returns:
          float32[batch, num_classes], in (0, 1), without a gradient.
        """
        probabilities = [tf.sigmoid(self._logits(network, x)) for network in self._networks]
        return tf.stop_gradient(tf.add_n(probabilities) / len(probabilities))

    def _logits(self, network: Sequence[tuple[tf.Variable, tf.Variable]], x: tf.Tensor) -> tf.Tensor:
        for index, (kernel, bias) in enumerate(network):
            product = tf.matmul(tf.cast(tf.nn.relu(x) if index else x, self._dtype), kernel)
            x = tf.cast(product, tf.float32) + bias
        return x
