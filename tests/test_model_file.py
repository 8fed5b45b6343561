"""Models' files that are not what a model's file is: refused, in one line."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from vidpress.model.frozen import model_file
from vidpress.model.frozen.frozen_model import FrozenModel, ModelError


def sealed(model, *, text=None, header=None, tensors=None):
    """A model's file with another header or other tensors, which fits its checksum."""
    data = model.to_bytes()
    length = int.from_bytes(data[:8], "little")
    fields = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["vidpress"])
    arrays = safetensors.numpy.load(data)
    for name, value in (tensors or {}).items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value
    fields = {name: value for name, value in (fields | (header or {})).items() if value is not ... and name != "sha256"}
    fields["sha256"] = model_file.content_sha256(fields, arrays)
    return safetensors.numpy.save(arrays, {"vidpress": json.dumps(fields) if text is None else text})


@pytest.mark.parametrize(
    "text", ["[]", "5", "null", '"x"', "[" * 50_000, '{"a":' * 20_000 + "1" + "}" * 20_000, "1" * 5000, "NaN", "", "{"]
)
def test_a_header_that_is_no_object_is_refused(model, text):
    with pytest.raises(ModelError, match="is not a vidpress model") as error:
        FrozenModel.from_bytes(sealed(model, text=text))
    assert str(error.value).isprintable()


ODD = [None, 0, -1, 17, 2**63, 10**40, 1.5, float("nan"), float("inf"), "", "16", [], [1], {}, {"a": 1}, True, ...]


@pytest.mark.parametrize("value", ODD, ids=str)
def test_odd_fields_of_a_header_are_refused_or_harmless(model, value):
    harmless = ("rounding_lmbda", "metadata", "top_k", "diagonal_head")
    for name in ("format_version", "spec", "architecture", "num_classes", "precision", *harmless):
        data = sealed(model, header={name: value})
        try:
            loaded = FrozenModel.from_bytes(data)
        except ModelError as error:
            assert str(error).isprintable()
        else:
            assert name in harmless
            assert loaded.rounding_lmbda >= 0
            assert type(loaded.top_k) is int
            assert 0 <= loaded.top_k <= loaded.num_dims
            assert loaded.head[0].shape == (40, 7)
            assert isinstance(loaded.metadata, dict)


def without_width(model):
    """Two layers with no unit between them."""
    return {
        "hidden.0.kernel": np.zeros((32, 0), np.float32),
        "hidden.0.bias": np.zeros(0, np.float32),
        "hidden.1.kernel": np.zeros((0, 40), np.float32),
        "hidden.1.bias": model.hidden[0][1],
    }


def test_tensors_that_are_not_the_header_s_are_refused(model):
    cases = [
        ({"tensors": without_width(model), "header": {"architecture": [32, 0, 40]}}, "has an empty layer"),
        ({"header": {"architecture": [32]}}, "has an empty layer"),
        ({"header": {"architecture": [32] * 1000}}, "its tensors are not those of"),
        ({"header": {"num_classes": 0}}, "has an empty layer"),
        ({"header": {"num_classes": None}}, r"its tensors are not those of .*head\.bias"),
        ({"header": {"num_classes": 8}}, r"head\.kernel is float32\[40, 7\], not float32\[40, 8\]"),
        ({"tensors": {"head.bias": None}}, r"its tensors are not those of .*head\.bias"),
        ({"tensors": {"../x": np.zeros(3)}}, r"its tensors are not those of .*\.\./x"),
        ({"tensors": {"tables.cdf": np.zeros(9)}}, r"tables\.cdf is float64\[9\], not int32"),
        ({"tensors": {"tables.bank_tilt": np.full((4, 40), -128, np.int8)}}, "its tables have no bank"),
        ({"tensors": {"tables.bank_tilt": np.zeros((0, 40), np.int8)}}, "There are 0 banks"),
        ({"tensors": {"tables.bank_tilt": np.zeros((257, 40), np.int8)}}, "There are 257 banks"),
        ({"header": {"has_decoder": False}}, r"its tensors are not those of .*decoder\.bias"),
        ({"tensors": {"decoder.bias": None}}, r"its tensors are not those of .*and a decoder: .*decoder\.bias"),
        ({"tensors": {"decoder.kernel": np.zeros((40, 32))}}, r"decoder\.kernel is float64\[40, 32\], not int8"),
        ({"tensors": {"decoder.scale": np.full(32, np.nan, np.float32)}}, "the decoder's scale .* holds NaN"),
        ({"header": {"top_k": 41}}, "top_k=41 must be from 0 to 40"),
        ({"header": {"diagonal_head": True}}, r"head\.kernel is float32\[40, 7\], not float32\[40\]"),
        (
            {"header": {"diagonal_head": True}, "tensors": {"head.kernel": np.ones(40, np.float32)}},
            r"the head has shapes \(40, 40\) and \(7,\), but its input has 40 numbers",
        ),
        ({"header": {"metadata": 5}}, "Expected `object`, got `int`"),
    ]
    for changes, message in cases:
        with pytest.raises(ModelError, match=message) as error:
            FrozenModel.from_bytes(sealed(model, **changes), name="x.safetensors")
        assert str(error.value).startswith("x.safetensors is damaged")


@pytest.mark.parametrize("length", [0, 2**20 + 1, 2**40, 2**64 - 1])
def test_a_length_of_the_header_that_is_not_the_file_s_is_refused(model, length):
    data = length.to_bytes(8, "little") + model.to_bytes()[8:] + bytes(2**20)
    with pytest.raises(ModelError, match="is not a vidpress model"):
        FrozenModel.from_bytes(data)


@pytest.mark.parametrize("value", [float("nan"), "\udcff", {1}, "x" * 2**18])
def test_metadata_that_could_not_be_read_back_are_refused(model, value):
    with pytest.raises(ModelError, match="metadata must be JSON values that can be read back"):
        dataclasses.replace(model, metadata={"note": value})
