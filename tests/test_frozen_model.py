import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from conftest import REPO, SPEC, inputs, random_model
from emulated_products import KINDS, TooFarOff, Undecided, with_kind
from test_exact_sums import by_definition

from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.dense_layers import Dense
from vidpress.model.frozen.frozen_model import FrozenModel, ModelError, UncodableError
from vidpress.model.frozen.input_decoder import fit_input_decoder
from vidpress.model.tables.banks import fit_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables


def assert_equal(left, right):
    assert left.spec == right.spec
    assert left.metadata == right.metadata
    for (kernel, bias), (other_kernel, other_bias) in zip(
        [*left.hidden, left.head], [*right.hidden, right.head], strict=True
    ):
        np.testing.assert_array_equal(kernel, other_kernel)
        np.testing.assert_array_equal(bias, other_bias)
    assert left.tables.to_bytes() == right.tables.to_bytes()
    for name, tensor in left.decoder.tensors().items():
        np.testing.assert_array_equal(right.decoder.tensors()[name], tensor)


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
    changed = data.replace(b'\\"format_version\\": 6', b'\\"format_version\\": 9')
    assert changed != data
    with pytest.raises(ModelError, match="format version 9; this vidpress reads 1, 2, 3, 4, 5, 6"):
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


@pytest.mark.parametrize("rounds_every_layer", [False, True])
def test_whether_lower_layers_are_rounded_is_part_of_the_file(rounds_every_layer):
    model = dataclasses.replace(random_model(SPEC, hidden=(50, 30)), rounds_every_layer=rounds_every_layer)
    loaded = FrozenModel.from_bytes(model.to_bytes())
    assert loaded.rounds_every_layer is rounds_every_layer
    assert loaded.model_id == model.model_id
    x = inputs(20)
    np.testing.assert_array_equal(loaded.quantize(x), model.quantize(x))
    hidden = np.maximum(x.astype(np.float64) @ model.hidden[0][0] + model.hidden[0][1], 0)
    hidden = np.rint(hidden) if rounds_every_layer else hidden
    expected = np.maximum(hidden @ model.hidden[1][0].astype(np.float64) + model.hidden[1][1], 0)
    np.testing.assert_array_equal(loaded.quantize(x), np.rint(expected))
    np.testing.assert_allclose(loaded.bottleneck(x), expected, rtol=1e-4, atol=1e-4)


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


def aimed(hidden, x, rounds_every_layer):
    """Layers with other biases: each unit has an input for which it comes within float32's reach of a tie."""
    layers, exact = [], x
    for index, (kernel, bias) in enumerate(hidden):
        sums = exact.astype(np.float64) @ kernel.astype(np.float64)
        places = np.arange(len(bias)) % len(x)
        aim = sums[places, np.arange(len(bias))]
        offset = 0.5 - (aim - np.floor(aim)) + np.rint(bias)
        if index < len(hidden) - 1 and not rounds_every_layer:
            offset = bias.astype(np.float64)
        layers.append((kernel, offset.astype(np.float32)))
        exact = Dense(*layers[-1]).exact(exact)
        if index < len(hidden) - 1 and rounds_every_layer:
            exact = np.rint(exact).astype(np.float32)
    return tuple(layers)


def hard_network(case, hidden, rounds_every_layer=True, num_videos=50):
    """A model and inputs, made to lie at ties and to be hard on float32; and near ties by much less than it is off."""
    rng = np.random.default_rng(5)
    spec = FeatureSpec.parse("emb:400")
    x = rng.normal(size=(num_videos, 400)).astype(np.float32)
    if case.startswith("mean"):
        x += np.float32(case.removeprefix("mean "))
    elif case == "dyadic":
        x = np.rint(4 * x)
    elif case == "denormal":
        x[:, ::2] *= np.float32(1e-39)
    elif case == "magnitudes":
        x *= 10.0 ** rng.uniform(-12, 0, x.shape).astype(np.float32)
    elif case == "cancelling":
        x[:, 200:] = x[:, :200]
        x *= np.float32(1e3)
    layers, activations = [], x.astype(np.float64)
    for fan_in, fan_out in itertools.pairwise([400, *hidden]):
        kernel = rng.normal(size=(fan_in, fan_out))
        if case == "cancelling" and fan_in == 400:
            kernel[200:] = -kernel[:200] * (1 + 2.0**-20)
        before = activations @ kernel
        kernel *= 4 / before.std(axis=0)
        if case == "dyadic":
            kernel = np.rint(kernel * 16) / 16
        before = activations @ kernel
        layers.append((kernel.astype(np.float32), -before.mean(axis=0).astype(np.float32)))
        activations = np.maximum(before - before.mean(axis=0), 0)
    layers = aimed(layers, x, rounds_every_layer)
    model = FrozenModel(spec, layers, unfitted(hidden[-1]), rounds_every_layer=rounds_every_layer)
    z_hat = with_kind(model, Undecided).quantize(x)
    tables = fit_banks(RangeCodingTables.fit(z_hat), z_hat, 4)
    return dataclasses.replace(model, tables=tables, rounding_lmbda=0.04), x


def unfitted(num_dims):
    return RangeCodingTables.fit(np.zeros((1, num_dims), np.int32))


HARD = ["mean 0", "mean 100", "mean 1000", "dyadic", "denormal", "magnitudes", "cancelling"]


@pytest.fixture(scope="module")
def hard_networks():
    return functools.cache(hard_network)


@pytest.mark.parametrize("rounds_every_layer", [True, False])
@pytest.mark.parametrize("hidden", [(1,), (70,), (90, 40), (50, 40, 30)])
@pytest.mark.parametrize("case", HARD)
def test_symbols_do_not_depend_on_the_processors_products(hard_networks, case, hidden, rounds_every_layer):
    """Whatever the order of sums, fused or not, flushed or not, in matrix units or not; by real and emulated ones."""
    model, x = hard_networks(case, hidden, rounds_every_layer)
    z_hat = with_kind(model, Undecided).quantize(x)
    for kind in KINDS:
        np.testing.assert_array_equal(with_kind(model, kind).quantize(x), z_hat, err_msg=kind.__name__)
    np.testing.assert_array_equal(model.quantize(x), z_hat)


@pytest.mark.parametrize("case", HARD)
def test_what_is_rounded_is_what_is_defined(hard_networks, case):
    """By sums that are written in another way than the model's own."""
    model, x = hard_networks(case, (90, 40))
    model = dataclasses.replace(model, rounding_lmbda=0)
    expected = []
    for row in x[:10]:
        for kernel, bias in model.hidden:
            row = np.array([np.rint(by_definition(row, kernel[:, j], bias[j])) for j in range(len(bias))])
        expected.append(row)
    np.testing.assert_array_equal(model.quantize(x[:10]), expected)


def test_networks_at_ties_tell_products_apart(hard_networks):
    """Otherwise, the tests above would say nothing: rounded as they are, products differ; too far off, symbols do."""
    for case in ("mean 0", "mean 100", "mean 1000", "cancelling"):
        model, x = hard_networks(case, (70,))
        model = dataclasses.replace(model, rounding_lmbda=0)
        z_hat = model.quantize(x)
        rounded = [np.rint(with_kind(model, kind)._fast_layers[0](x)) for kind in KINDS]
        assert any((other != z_hat).any() for other in rounded), case
        if case in ("mean 0", "mean 100"):  # where bounds decide something
            assert (with_kind(model, TooFarOff).quantize(x) != z_hat).any(), case


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_cannot_be_coded_does_not_depend_on_products(kind):
    """Sums that leave float32's range in some orders; and ones that end at the greatest integer."""
    spec = FeatureSpec.parse("emb:4")
    kernel = np.array([[3e38, 1], [3e38, 1], [-3e38, 1], [-3e38, 1]], np.float32)
    model = FrozenModel(spec, ((kernel, np.zeros(2, np.float32)),), unfitted(2))
    x = np.ones((6, 4), np.float32)
    x[1] *= 3e38
    x[2, 0] = 1.5
    x[3] = [2**23, 2**23, -0.25, 0.25]
    x[4] = [2**23, 2**23, -0.25, 0.75]
    x[5, 3] = np.inf
    with pytest.raises(UncodableError) as error:
        with_kind(model, kind).quantize(x)
    assert error.value.usable.tolist() == [True, False, False, False, False, False]
    np.testing.assert_array_equal(with_kind(model, kind).quantize(x[:1]), [[0, 4]])


def test_lower_layers_that_are_too_large_are_refused_by_row():
    model = random_model(SPEC, hidden=(50, 30))
    model = dataclasses.replace(model, rounds_every_layer=True)
    x = inputs(5)
    x[1] *= 1e9
    x[4] = np.nan
    with pytest.raises(UncodableError) as error:
        model.quantize(x)
    assert error.value.usable.tolist() == [True, False, True, True, False]


SCRIPT = """
import sys, numpy, threadpoolctl
from vidpress.model.frozen import dense_layers, frozen_model
dense_layers.has_matrix_units = lambda: False
model = frozen_model.FrozenModel.load(sys.argv[1])
z_hat = model.quantize(numpy.load(sys.argv[2]))
print(threadpoolctl.threadpool_info()[0]["architecture"])
numpy.save(sys.argv[3], z_hat)
"""


@pytest.mark.parametrize("architecture", ["Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen"])
def test_symbols_do_not_depend_on_the_processors_blas_kernel(tmp_path, architecture):
    """Other processors' matrix products, as far as this one can run them."""
    model, x = hard_network("mean 100", (90, 40), num_videos=300)
    model.save(tmp_path / "m.safetensors")
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
    with pytest.raises(UncodableError, match="row 3 of x gives activations that are NaN or beyond 16777216") as error:
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
    decoder = fit_input_decoder([(np.zeros((5, 3), np.int32), np.zeros((5, 32), np.float32))])
    with pytest.raises(ModelError, match=r"The decoder has shape \(3, 32\), not \(40, 32\)"):
        FrozenModel(model.spec, model.hidden, model.tables, decoder=decoder)


def test_a_model_without_head_says_so(model):
    headless = FrozenModel.from_bytes(FrozenModel(model.spec, model.hidden, model.tables).to_bytes())
    with pytest.raises(ValueError, match="without its task head"):
        headless.logits(np.zeros((1, 40)))


def test_a_model_without_decoder_says_so(model):
    without = FrozenModel.from_bytes(dataclasses.replace(model, decoder=None).to_bytes())
    assert without.decoder is None
    with pytest.raises(ValueError, match="has no decoder of its input: freeze it again"):
        without.restore(np.zeros((1, 40), np.int32))


@pytest.mark.parametrize(
    ("version", "model_id", "codes", "bank"),
    [
        (1, "fe57ad4a60935df2", ["a9ce", "226d40", "897c"], [0, 0, 0]),
        (2, "190cfaaa413cd3a0", ["b802", "1a64", "9a"], [2, 2, 3]),
        (3, "872a090f56b2169a", ["0accec", "3e", "504b5f0d8fef"], [0, 2, 1]),
        (4, "edbd7acc334a7f6d", ["580ebc413f", "645ad8ee45", "7a508584a621127dc85222"], [1, 3, 1]),
        (5, "dba2f4eb36b6a1ef", ["474b1931", "1c40a1", "4763a9"], [2, 1, 0]),
        (6, "86cea3e8091dcdbc", ["a7f3c2ea", "53483456", "df468b09610e"], [2, 3, 3]),
    ],
)
def test_golden_model_is_read_and_gives_the_same_codes(version, model_id, codes, bank):
    path = REPO / "tests" / "golden" / f"model-v{version}.safetensors"
    model = FrozenModel.load(path, model_id=model_id)
    golden = np.load(path.with_suffix(".npz"))
    np.testing.assert_array_equal(model.quantize(golden["x"]), golden["z_hat"])
    for kind in (*KINDS, Undecided):
        np.testing.assert_array_equal(with_kind(model, kind).quantize(golden["x"]), golden["z_hat"])
    np.testing.assert_allclose(model.logits(golden["z_hat"]), golden["logits"], rtol=1e-5, atol=1e-5)
    found_codes, found_bank = model.compress(golden["x"])
    assert [code.hex() for code in found_codes[:3]] == codes
    assert found_bank[:3].tolist() == bank
    assert (model.decoder is not None) == (version >= 5)
    if model.decoder is not None:
        np.testing.assert_array_equal(model.restore(golden["z_hat"]), golden["restored"])
