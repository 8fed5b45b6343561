"""One step of training, on whichever backend Keras runs: TensorFlow, JAX or PyTorch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras

# Takes a batch and its labels, and returns the task's loss and the whole loss, which is minimised.
Losses = Callable[[Any, Any], tuple[Any, Any]]

# An optimizer, and the variables that it updates.
Group = tuple[keras.optimizers.Optimizer, Sequence[keras.Variable]]


class TrainingStep:
    """Updates variables by the gradient of a loss.

    A step is compiled as a whole, by XLA on TensorFlow and JAX: the prior's many small operations and an optimizer's
    passes over its weights become a few loops. PyTorch runs it operation by operation.

    Args:
      network: The network.
      losses: Returns the losses of float32 batches of one size.
      groups: Optimizers by their names, each with variables of the network.
      frozen: Variables that `losses` reads besides the network's.
      others: Variables that are moved besides the network's, by what they belong to.
      jit_compile: Compile by XLA on TensorFlow, too; otherwise it runs operation by operation there.
    """

    def __init__(
        self,
        network: keras.Model,
        losses: Losses,
        groups: Mapping[str, Group],
        *,
        frozen: Sequence[keras.Variable] = (),
        others: Mapping[str, Sequence[keras.Variable]] = MappingProxyType({}),
        jit_compile: bool = True,
    ):
        self._network = network
        self._losses = losses
        self._groups = list(groups.values())
        self._frozen = list(frozen)
        self._trainable = [variable for _, variables in self._groups for variable in variables]
        for optimizer, variables in self._groups:
            optimizer.build(variables)
        self.state = {"network": network.variables, **others} | {
            name: group[0].variables for name, group in groups.items()
        }
        backend = keras.backend.backend()
        if backend == "tensorflow":
            self._step = self._on_tensorflow(jit_compile)
        elif backend == "jax":
            self._step = self._on_jax()
        else:
            self._step = self._on_torch

    def __call__(self, x: Any, labels: Any) -> Any:
        """Make a step, and return the task's loss before it, a scalar of the backend."""
        return self._step(x, labels)

    def _by_group(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        """Split what belongs to the trainable variables by optimizer."""
        ends = list(itertools.accumulate(len(variables) for _, variables in self._groups))
        return [values[start:end] for start, end in itertools.pairwise([0, *ends])]

    def _apply(self, gradients: Sequence[Any]) -> None:
        for (optimizer, variables), own in zip(self._groups, self._by_group(gradients), strict=True):
            optimizer.apply(own, variables)

    def _on_tensorflow(self, jit_compile: bool) -> Callable[[Any, Any], Any]:
        import tensorflow as tf

        @tf.function(jit_compile=jit_compile, autograph=False)
        def step(x: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                task, loss = self._losses(x, labels)
            self._apply(tape.gradient(loss, [variable.value for variable in self._trainable]))
            return task

        return step

    def _on_torch(self, x: Any, labels: Any) -> Any:
        import torch

        task, loss = self._losses(*(keras.ops.convert_to_tensor(each) for each in (x, labels)))
        for variable in self._trainable:
            variable.value.grad = None
        loss.backward()
        with torch.no_grad():
            self._apply([variable.value.grad for variable in self._trainable])
        return task.detach()

    def _on_jax(self) -> Callable[[Any, Any], Any]:
        import jax

        trainable = {id(variable) for variable in self._trainable}
        others = [each for each in self._network.variables if id(each) not in trainable]
        others += [*self._network.metrics_variables, *self._frozen]

        def losses(values: list[Any], other_values: list[Any], x: Any, labels: Any) -> tuple[Any, tuple[Any, list]]:
            mapping = [*zip(self._trainable, values, strict=True), *zip(others, other_values, strict=True)]
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
                task, loss = self._losses(x, labels)
                return loss, (task, [scope.get_current_value(each) for each in others])

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: tuple[list, list, list[list]], x: Any, labels: Any) -> tuple[Any, tuple[list, list, list]]:
            values, other_values, optimizer_values = state
            gradient = jax.value_and_grad(losses, has_aux=True)
            (_, (task, other_values)), gradients = gradient(values, other_values, x, labels)
            moved: list[Any] = []
            moments = []
            for (optimizer, _), own, value, moment in zip(
                self._groups, self._by_group(gradients), self._by_group(values), optimizer_values, strict=True
            ):
                new_values, new_moment = optimizer.stateless_apply(moment, own, value)
                moved += new_values
                moments.append(new_moment)
            return task, (moved, other_values, moments)

        optimizers = [optimizer.variables for optimizer, _ in self._groups]

        def call(x: Any, labels: Any) -> Any:
            state = (
                [each.value for each in self._trainable],
                [each.value for each in others],
                [[each.value for each in variables] for variables in optimizers],
            )
            task, (values, other_values, moments) = step(state, x, labels)
            moved = [(self._trainable, values), (others, other_values), *zip(optimizers, moments, strict=True)]
            for variables, new in moved:
                for variable, value in zip(variables, new, strict=True):
                    variable.assign(value)
            return task

        return call
