"""The bottleneck as a plug-in: what a codec, a store and a decoder need from any Keras model that has one."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from vidpress.model.coding.feature_codec import FeatureCodec
from vidpress.model.networks.bottleneck import Bottleneck, bottleneck_of
from vidpress.model.networks.many_rates import rates_of


def encoder_of(model: keras.Model) -> keras.Model:
    """Return the model from a model's inputs to its rounded features `z_hat`, which shares its weights."""
    return keras.Model(model.inputs, _bottleneck(model).output)


def head_of(model: keras.Model) -> keras.Model:
    """Return the model from features `z_hat`, as decoded, to a model's outputs; it shares its weights."""
    bottleneck, rates = _bottleneck(model), rates_of(model)
    if rates is None:
        return keras.Model(bottleneck.output, model.outputs)
    _, position = bottleneck.input
    head = keras.Model([bottleneck.output, position], model.outputs)
    z_hat = keras.Input(bottleneck.output.shape[1:])
    return keras.Model(z_hat, head([z_hat, rates(z_hat)]))


def quantize(model: keras.Model, x: Any, *, batch_size: int = 256) -> np.ndarray:
    """Return the features of examples.

    Args:
      model: A functional model with one `Bottleneck`.
      x: Its input: an array, or batches as `keras.Model.predict` takes them, such as a `tf.data.Dataset`.
      batch_size: Examples taken at a time, of an array.

    Returns:
      int32[num_examples, ..., num_channels], `z_hat`.

    Raises:
      ValueError: If a feature is NaN or beyond int32, because the training diverged, or if there is no example.
    """
    if isinstance(x, np.ndarray) and not len(x):
        raise ValueError("x has no examples: give at least one.")
    z_hat = encoder_of(model).predict(x, batch_size=batch_size if isinstance(x, np.ndarray) else None, verbose=0)
    if not (np.abs(z_hat) < 2**31).all():  # nor is NaN
        raise ValueError(f"Model {model.name!r} gives features that are NaN or beyond int32: did its training diverge?")
    return z_hat.astype(np.int32)


def freeze(model: keras.Model, x: Any, *, tables: str = "empirical", num_banks: int = 1) -> FeatureCodec:
    """Return the codec of a trained model's features.

    Args:
      model: A functional model with one `Bottleneck`.
      x: Training data, as for `quantize`.
      tables: "empirical" fits the tables to the features of `x`; "prior" uses those of the bottleneck's prior.
      num_banks: How many banks of tables to fit, a power of two from 1 to 256. With 1, strings are those of
        tensorflow-compression for the tables.

    Raises:
      ValueError: If `tables` is neither, or if that many banks cannot be fitted.
    """
    z_hat = quantize(model, x)
    if tables == "empirical":
        return FeatureCodec.fit(z_hat, num_banks=num_banks)
    if tables != "prior":
        raise ValueError(f"tables={tables!r} must be 'empirical' or 'prior'.")
    codec = FeatureCodec(_bottleneck(model).tables(), z_hat.shape[1:])
    return codec.with_banks(z_hat, num_banks)


def _bottleneck(model: keras.Model) -> Bottleneck:
    found = bottleneck_of(model)
    if found is None:
        raise ValueError(f"Model {model.name!r} has no Bottleneck layer among its own layers: it must have one.")
    return found
