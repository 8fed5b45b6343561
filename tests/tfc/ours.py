"""Run by a Python that has Keras 3 (`VIDPRESS_PYTHON`), which tensorflow-compression's own cannot have.

    ours.py INPUT.npz OUTPUT.npz

For each case NAME the input has `NAME/num_filters`, the prior's weights `NAME/matrix_0`, `NAME/bias_0`, ... in
tensorflow-compression's layout, and values `NAME/y`. The output has `NAME/log_prob`, and the gradients of its sum by
`y` and the weights, `NAME/gradient_y` and so on; and for each number in `NAME/precision` the tables,
`NAME/lookup_PRECISION` and `NAME/cdf_offset_PRECISION`.
"""

import functools
import sys

import keras
import numpy as np
from keras import ops

from vidpress.model.networks.prior import DeepFactorized


def weight_values(case):
    """The layer's weights by name: theirs are [channels, outputs, inputs or 1]."""
    values = {name: array for name, array in case.items() if name.split("_")[0] in ("matrix", "bias", "factor")}
    return {
        name: array.transpose(1, 2, 0) if name.startswith("matrix") else array[:, :, 0].T
        for name, array in values.items()
    }


def their_layout(name, array):
    return array.transpose(2, 0, 1) if name.startswith("matrix") else array.T[:, :, None]


def build(case):
    layer = DeepFactorized(num_filters=tuple(case["num_filters"].tolist()), dtype=case["y"].dtype.name)
    layer.build(case["y"].shape)
    values = weight_values(case)
    assert sorted(values) == sorted(weight.name for weight in layer.weights)
    for weight in layer.weights:
        weight.assign(values[weight.name])
    return layer


def log_prob_and_gradients(layer, y):
    """`log_prob(y)`, and the gradients of its sum by `y` and by the weights, in this backend's way."""
    weights = layer.trainable_weights
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        inputs = tf.constant(y)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            log_prob = layer.log_prob(inputs)
        return log_prob, tape.gradient(log_prob, [inputs, *(weight.value for weight in weights)])
    if keras.backend.backend() == "torch":
        import torch

        inputs = torch.tensor(y, requires_grad=True)
        log_prob = layer.log_prob(inputs)
        return log_prob, torch.autograd.grad(log_prob.sum(), [inputs, *(weight.value for weight in weights)])
    import jax

    def total(inputs, values):
        with keras.StatelessScope(zip(weights, values, strict=True)):
            log_prob = layer.log_prob(inputs)
        return log_prob.sum(), log_prob

    by_inputs, log_prob = jax.grad(total, (0, 1), has_aux=True)(y, [weight.value for weight in weights])
    return log_prob, [by_inputs[0], *by_inputs[1]]


def main(source, target):
    found = np.load(source)
    cases = {}
    for key in found.files:
        name, _, what = key.partition("/")
        cases.setdefault(name, {})[what] = found[key]
    results = {}
    for name, case in cases.items():
        layer = build(case)
        log_prob, gradients = log_prob_and_gradients(layer, case["y"])
        arrays = {"log_prob": log_prob}
        for what, gradient in zip(["y", *(w.name for w in layer.trainable_weights)], gradients, strict=True):
            gradient = ops.convert_to_numpy(gradient)
            arrays[f"gradient_{what}"] = gradient if what == "y" else their_layout(what, gradient)
        # The search takes the most time, and does not depend on the precision.
        layer._where_logits_are = functools.cache(layer._where_logits_are)
        for precision in case.get("precision", []):
            tables = layer.tables(int(precision))
            arrays[f"lookup_{precision}"], arrays[f"cdf_offset_{precision}"] = tables.lookup, tables.cdf_offset
        results |= {f"{name}/{what}": ops.convert_to_numpy(array) for what, array in arrays.items()}
    np.savez(target, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
