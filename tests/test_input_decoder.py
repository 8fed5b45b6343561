"""The decoder of the input: fitted to videos, exact in integers, the same in a file."""

import json

import numpy as np
import pytest
import safetensors.numpy
from conftest import SPEC
from hypothesis import given
from hypothesis import strategies as st

from vidpress.model.frozen import model_file
from vidpress.model.frozen.input_decoder import DecoderError, DecoderFile, InputDecoder, fit_input_decoder

RNG = np.random.default_rng(3)


def make_decoder(num_dims=40, input_size=SPEC.input_size) -> InputDecoder:
    kernel = RNG.integers(-127, 128, (num_dims, input_size)).astype(np.int8)
    scale, bias = RNG.uniform(1e-3, 1e-1, input_size), RNG.normal(size=input_size)
    return InputDecoder(kernel, scale.astype(np.float32), bias.astype(np.float32))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 100, 10**4, 10**6, 2**24]))
def test_what_is_restored_is_exact(seed, largest):
    """By Python's integers, in float32's reach and beyond."""
    rng = np.random.default_rng(seed)
    decoder = make_decoder(7, 5)
    z_hat = rng.integers(-largest, largest + 1, (3, 7)).astype(np.int32)
    restored = decoder.restore(z_hat)
    assert restored.dtype == np.float32
    for row, column in np.ndindex(restored.shape):
        product = sum(int(z) * int(k) for z, k in zip(z_hat[row], decoder.kernel[:, column], strict=True))
        expected = np.float64(product) * np.float64(decoder.scale[column]) + np.float64(decoder.bias[column])
        assert restored[row, column] == np.float32(expected)


def test_a_row_does_not_depend_on_its_companions():
    decoder = make_decoder(300, 200)
    z_hat = RNG.poisson(0.5, (400, 300)).astype(np.int32)
    z_hat[17] *= 10**5  # a row beyond float32's reach, so that the others are computed in float64, too
    together = decoder.restore(z_hat)
    np.testing.assert_array_equal(decoder.restore(np.delete(z_hat, 17, axis=0)), np.delete(together, 17, axis=0))
    np.testing.assert_array_equal(decoder.restore(z_hat[17:18]), together[17:18])
    assert decoder.restore(z_hat[:0]).shape == (0, 200)


def in_parts(z_hat, x, size):
    return ((z_hat[start : start + size], x[start : start + size]) for start in range(0, len(x), size))


def test_what_depends_linearly_on_integers_is_restored():
    z_hat = RNG.poisson(1.0, (2000, 12)).astype(np.int32)
    x = (z_hat @ RNG.normal(size=(12, 30)) + RNG.normal(size=30)).astype(np.float32)
    decoder = fit_input_decoder(in_parts(z_hat, x, 300))
    error = np.square(decoder.restore(z_hat) - x).mean() / x.var()
    assert error < 1e-4  # a kernel of 8 bits


def test_the_penalty_fits_how_much_the_integers_say():
    """Of few videos and many dimensions that say nothing, nearly nothing but the mean must be left."""
    z_hat = RNG.poisson(1.0, (100, 90)).astype(np.int32)
    x = RNG.normal(3, 1, (100, 8)).astype(np.float32)
    others = RNG.poisson(1.0, (500, 90)).astype(np.int32)
    restored = fit_input_decoder([(z_hat, x)]).restore(others)
    assert np.square(restored - 3).mean() < 1  # unpenalised, it is 9


def test_parts_make_no_difference():
    z_hat = RNG.poisson(0.7, (500, 10)).astype(np.int32)
    x = RNG.integers(-8, 8, (500, 6)).astype(np.float32)  # whose sums are exact
    whole = fit_input_decoder([(z_hat, x)])
    for size in (1, 7, 499):
        for name, tensor in fit_input_decoder(in_parts(z_hat, x, size)).tensors().items():
            np.testing.assert_array_equal(tensor, whole.tensors()[name])


@pytest.mark.parametrize("num_videos", [1, 2, 11])
def test_few_videos_and_unused_dimensions_are_enough(num_videos):
    x = RNG.normal(size=(num_videos, 4)).astype(np.float32)
    decoder = fit_input_decoder([(np.zeros((num_videos, 3), np.int32), x)])
    np.testing.assert_allclose(decoder.restore(np.zeros((1, 3), np.int32))[0], x.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_no_videos_are_refused():
    with pytest.raises(ValueError, match="at least one video"):
        fit_input_decoder([])
    with pytest.raises(ValueError, match="at least one video"):
        fit_input_decoder([(np.zeros((0, 3), np.int32), np.zeros((0, 4), np.float32))])


def test_other_shapes_and_numbers_are_refused():
    decoder = make_decoder()
    with pytest.raises(ValueError, match=r"z_hat has shape \(3, 39\); this decoder takes \[num_videos, 40\]"):
        decoder.restore(np.zeros((3, 39), np.int32))
    with pytest.raises(ValueError, match="which no encoder writes"):
        make_decoder(8192, 1).restore(np.full((1, 8192), -(2**31), np.int64) * 8192)
    kernel, scale, bias = decoder.kernel, decoder.scale, decoder.bias
    for changed, message in (
        ((kernel.astype(np.int16), scale, bias), r"int16\[40, 32\]"),
        ((kernel[0], scale, bias), r"int8\[32\]"),
        ((kernel, scale[1:], bias), r"a scale \(31,\)"),
        ((kernel, scale, bias.astype(np.float64)), "the decoder's bias is not float32"),
        ((kernel, scale * np.inf, bias), "the decoder's scale .* holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            InputDecoder(*changed)


FILE = DecoderFile("0123456789abcdef", SPEC, make_decoder())


def test_file_round_trip():
    loaded = DecoderFile.from_bytes(FILE.to_bytes())
    assert (loaded.model_id, loaded.spec) == (FILE.model_id, FILE.spec)
    for name, tensor in FILE.decoder.tensors().items():
        np.testing.assert_array_equal(loaded.decoder.tensors()[name], tensor)
    assert loaded.to_bytes() == FILE.to_bytes()


def sealed(header=None, tensors=None) -> bytes:
    """The file with another header or other tensors, which fits its checksum."""
    data = FILE.to_bytes()
    fields = json.loads(model_file.header_text(data)) | (header or {})
    del fields["sha256"]
    arrays = safetensors.numpy.load(data) | (tensors or {})
    arrays = {name: array for name, array in arrays.items() if array is not None}
    return model_file.to_bytes(fields, arrays)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a decoder of vidpress"),
        (b"hello " * 100, "is not a decoder of vidpress"),
        (sealed({"format_version": 2}), "has format version 2; this vidpress reads 1"),
        (sealed({"model_id": 5}), "is damaged: .*model_id"),
        (sealed({"spec": {}}), "is damaged: A feature spec has no"),
        (sealed({"spec": SPEC.to_json() | {"features": [{"name": "rgb", "size": 31}]}}), r"not int8\[None, 31\]"),
        (sealed(tensors={"bias": None}), r"its tensors are not those .*\['bias'\]"),
        (sealed(tensors={"more": np.zeros(3)}), r"its tensors are not those .*\['more'\]"),
        (sealed(tensors={"bias": np.full(32, np.nan, np.float32)}), "holds NaN"),
        (sealed(tensors={"scale": np.zeros(32)}), r"scale is float64\[32\]"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(DecoderError, match=message) as error:
        DecoderFile.from_bytes(data, name="x/decoder")
    assert str(error.value).startswith("x/decoder ")
    assert "Fetch it again" in str(error.value) or "install" in str(error.value)


def test_every_damaged_bit_is_noticed():
    data = FILE.to_bytes()
    for position in RNG.integers(0, len(data), 200):
        damaged = bytearray(data)
        damaged[position] ^= 1 << RNG.integers(8)
        try:
            loaded = DecoderFile.from_bytes(bytes(damaged))
        except DecoderError:
            continue
        assert loaded.to_bytes() == data  # white space, perhaps; never another decoder
