import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from conftest import REPO, SPEC, random_model

from vidpress.model import dense_layers, frozen_model
from vidpress.model.frozen_model import FrozenModel, ModelError, UncodableError
from vidpress.model.range_coding_tables import RangeCodingTables


def inputs(num_videos, seed=1):
    return np.random.default_rng(seed).normal(size=(num_videos, SPEC.input_size)).astype(np.float32)


def assert_equal(left, right):
    assert left.spec == right.spec
    assert left.metadata == right.metadata
    for (kernel, bias), (other_kernel, other_bias) in zip(
        [*left.hidden, left.head], [*right.hidden, right.head], strict=True
    ):
        np.testing.assert_array_equal(kernel, other_kernel)
        np.testing.assert_array_equal(bias, other_bias)
    assert left.tables.to_bytes() == right.tables.to_bytes()


def test_file_round_trip(model, tmp_path):
    path = tmp_path / "folder" / "model.safetensors"
    model_id = model.save(path)
    loaded = FrozenModel.load(path, model_id=model_id)
    assert loaded.model_id == model.model_id == model_id
    assert len(model_id) == 16
    assert_equal(loaded, model)


def test_a_model_in_use_is_not_loaded_twice(model, tmp_path):
    model_id = model.save(tmp_path / "model.safetensors")
    loaded = FrozenModel.load(tmp_path / "model.safetensors")
    assert FrozenModel.load(tmp_path / "model.safetensors", model_id=model_id) is loaded
    del loaded
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        FrozenModel.load(tmp_path / "model.safetensors", model_id=model_id)


def test_equal_models_have_equal_files():
    assert random_model(SPEC).to_bytes() == random_model(SPEC).to_bytes()
    assert random_model(SPEC).model_id != random_model(SPEC, seed=1).model_id


def test_a_saved_model_is_never_replaced(model, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists already: choose another name"):
        model.save(path)
    assert path.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_another_model_than_expected_is_refused(model_path):
    with pytest.raises(ModelError, match=r"is model [0-9a-f]{16}, not 0123456789abcdef"):
        FrozenModel.load(model_path, model_id="0123456789abcdef")


def test_what_is_no_model_is_refused(tmp_path):
    text = tmp_path / "readme.txt"
    text.write_text("hello " * 100)
    with pytest.raises(ModelError, match=r"readme\.txt is not a vidpress model"):
        FrozenModel.load(text)
    other = tmp_path / "other.safetensors"
    other.write_bytes(safetensors.numpy.save({"weights": np.zeros(3)}))
    with pytest.raises(ModelError, match=r"other\.safetensors is not a vidpress model"):
        FrozenModel.load(other)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors does not exist"):
        FrozenModel.load(tmp_path / "absent.safetensors")


def test_a_later_format_is_refused(model):
    data = model.to_bytes()
    changed = data.replace(b'\\"format_version\\": 3', b'\\"format_version\\": 9')
    assert changed != data
    with pytest.raises(ModelError, match="format version 9; this vidpress reads 1, 2"):
        FrozenModel.from_bytes(changed)


def test_every_damaged_bit_is_noticed(model):
    data = model.to_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 300):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        try:
            loaded = FrozenModel.from_bytes(bytes(damaged))
        except ModelError:
            continue
        assert_equal(loaded, model)  # white space, perhaps; never another model


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
    fields["sha256"] = frozen_model._content_sha256(fields, arrays)
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
    for name in ("format_version", "spec", "architecture", "num_classes", "precision", "rounding_lmbda", "metadata"):
        data = sealed(model, header={name: value})
        try:
            loaded = FrozenModel.from_bytes(data)
        except ModelError as error:
            assert str(error).isprintable()
        else:
            assert name in ("rounding_lmbda", "metadata")
            assert loaded.rounding_lmbda >= 0
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


def test_header_says_what_the_model_is(model):
    data = model.to_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["vidpress"])
    assert header["architecture"] == [32, 40]
    assert header["num_classes"] == 7
    assert header["metadata"] == {"lmbda": 0.002, "seed": 0}


def test_bottleneck_is_the_network():
    model = random_model(SPEC, hidden=(50, 30))
    x = inputs(10)
    expected = x
    for kernel, bias in model.hidden:
        expected = np.maximum(expected.astype(np.float64) @ kernel + bias, 0)
    np.testing.assert_allclose(model.bottleneck(x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(model.quantize(x), np.rint(expected))
    np.testing.assert_allclose(
        model.logits(model.quantize(x)),
        model.quantize(x) @ model.head[0] + model.head[1],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("hidden", [(40,), (500, 300)])
def test_a_row_does_not_depend_on_its_companions(hidden):
    model = random_model(SPEC, hidden=hidden)
    x = inputs(400)
    together = model.quantize(x)
    order = np.random.default_rng(2).permutation(len(x))
    np.testing.assert_array_equal(model.quantize(x[order]), together[order])
    for num_videos in (1, 2, 17, 128):
        np.testing.assert_array_equal(model.quantize(x[:num_videos]), together[:num_videos])


def near_halves(model, num_videos):
    """Inputs scaled so that one of their z lies within a few float32 steps of a half."""
    x = inputs(num_videos).astype(np.float64)
    (kernel, bias) = (array.astype(np.float64) for array in model.hidden[0])
    for row in range(num_videos):
        z = x[row] @ kernel + bias
        column = np.argmax(z)
        x[row] *= (np.floor(z[column]) + 0.5 - bias[column]) / (z[column] - bias[column])
    return x.astype(np.float32)


def test_ties_are_decided_by_the_exact_value(model):
    """Where float32 sums round one way or the other by their order, the result is that of exact arithmetic."""
    x = near_halves(model, 200)
    (kernel, bias) = model.hidden[0]
    exact = np.maximum(x.astype(np.float64) @ kernel.astype(np.float64) + bias.astype(np.float64), 0)
    assert (np.abs(np.abs(exact - np.rint(exact)) - 0.5).min(axis=1) < 1e-6).all()
    np.testing.assert_array_equal(model.quantize(x), np.rint(exact))
    assert (np.rint(model.bottleneck(x)) != np.rint(exact)).any()


@pytest.mark.parametrize("hidden", [(1,), (40,), (1500, 60)])
def test_symbols_do_not_depend_on_matrix_units(monkeypatch, hidden):
    """With and without, as far as this processor has them."""
    model = dataclasses.replace(random_model(SPEC, hidden=hidden), rounding_lmbda=0.04)
    x = np.concatenate([inputs(3000), near_halves(random_model(SPEC), 50)])
    z_hat = model.quantize(x)
    monkeypatch.setattr(dense_layers, "has_matrix_units", lambda: False)
    np.testing.assert_array_equal(dataclasses.replace(model).quantize(x), z_hat)


SCRIPT = """
import sys, numpy, threadpoolctl
from vidpress.model import dense_layers, frozen_model
dense_layers.has_matrix_units = lambda: False
model = frozen_model.FrozenModel.load(sys.argv[1])
z_hat = model.quantize(numpy.load(sys.argv[2]))
print(threadpoolctl.threadpool_info()[0]["architecture"])
numpy.save(sys.argv[3], z_hat)
"""


@pytest.mark.parametrize("architecture", ["Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen"])
def test_symbols_do_not_depend_on_the_processors_blas_kernel(tmp_path, architecture):
    """Other processors' matrix products, as far as this one can run them."""
    model = dataclasses.replace(random_model(SPEC, hidden=(70, 50)), rounding_lmbda=0.04)
    model.save(tmp_path / "m.safetensors")
    x = np.concatenate([inputs(3000), near_halves(random_model(SPEC), 50)])
    np.save(tmp_path / "x.npy", x)
    arguments = [str(tmp_path / name) for name in ("m.safetensors", "x.npy", "z_hat.npy")]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "OPENBLAS_CORETYPE": architecture},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0 or architecture not in result.stdout:
        pytest.skip(f"this processor or NumPy cannot run OpenBLAS's {architecture} kernels: {result.stderr[-200:]}")
    np.testing.assert_array_equal(np.load(tmp_path / "z_hat.npy"), model.quantize(x))


def test_codes_round_trip(model):
    x = inputs(20)
    np.testing.assert_array_equal(model.decompress(*model.compress(x)), model.quantize(x))


def test_no_videos_give_no_codes(model):
    assert model.compress(inputs(0))[0] == []
    assert model.decompress([]).shape == (0, model.num_dims)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_inputs_that_have_no_code_are_refused(model, value):
    x = inputs(5)
    x[3] = value
    with pytest.raises(UncodableError, match="row 3 of x gives z up to") as error:
        model.quantize(x)
    assert error.value.usable.tolist() == [True, True, True, False, True]


def test_inputs_of_another_shape_are_refused(model):
    with pytest.raises(ValueError, match=r"x has shape \(3, 31\); this model takes \[num_videos, 32\]"):
        model.bottleneck(np.zeros((3, 31), np.float32))


def test_a_model_that_does_not_fit_together_is_refused(model):
    kernel, bias = model.hidden[0]
    with pytest.raises(ModelError, match="hidden layer 0 has shapes"):
        FrozenModel(model.spec, ((kernel[:-1], bias),), model.tables)
    with pytest.raises(ModelError, match="NaN or infinity"):
        FrozenModel(model.spec, ((kernel * np.nan, bias),), model.tables)
    with pytest.raises(ModelError, match="must be float32"):
        FrozenModel(model.spec, ((kernel.astype(np.float64), bias),), model.tables)
    with pytest.raises(ModelError, match="tables have 5 dimensions, the bottleneck 40"):
        FrozenModel(model.spec, model.hidden, RangeCodingTables.fit(np.zeros((3, 5), np.int32)))


def test_a_model_without_head_says_so(model):
    headless = FrozenModel.from_bytes(FrozenModel(model.spec, model.hidden, model.tables).to_bytes())
    with pytest.raises(ValueError, match="without its task head"):
        headless.logits(np.zeros((1, 40)))


@pytest.mark.parametrize(
    ("version", "model_id", "codes", "bank"),
    [
        (1, "fe57ad4a60935df2", ["a9ce", "226d40", "897c"], [0, 0, 0]),
        (2, "190cfaaa413cd3a0", ["b802", "1a64", "9a"], [2, 2, 3]),
        (3, "872a090f56b2169a", ["0accec", "3e", "504b5f0d8fef"], [0, 2, 1]),
    ],
)
def test_golden_model_is_read_and_gives_the_same_codes(version, model_id, codes, bank):
    path = REPO / "tests" / "golden" / f"model-v{version}.safetensors"
    model = FrozenModel.load(path, model_id=model_id)
    golden = np.load(path.with_suffix(".npz"))
    np.testing.assert_array_equal(model.quantize(golden["x"]), golden["z_hat"])
    np.testing.assert_allclose(model.logits(golden["z_hat"]), golden["logits"], rtol=1e-5, atol=1e-5)
    found_codes, found_bank = model.compress(golden["x"])
    assert [code.hex() for code in found_codes[:3]] == codes
    assert found_bank[:3].tolist() == bank
