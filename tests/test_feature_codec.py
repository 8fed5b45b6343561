"""Features to strings and back."""

import numpy as np
import pytest

from vidpress.model.coding import range_coder
from vidpress.model.coding.feature_codec import FeatureCodec
from vidpress.model.tables.range_coding_tables import RangeCodingTables


def features(shape, n=300, seed=0):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, (n, *[1] * len(shape)))
    scale = np.where(kind, np.linspace(0.1, 3, shape[-1]), np.linspace(3, 0.1, shape[-1]))
    return np.rint(rng.normal(0, scale, (n, *shape))).astype(np.int32)


@pytest.mark.parametrize("num_banks", [1, 4])
@pytest.mark.parametrize("shape", [(6,), (3, 2, 6)])
def test_what_is_decoded_is_what_was_encoded(shape, num_banks):
    codec = FeatureCodec.fit(features(shape), num_banks=num_banks)
    assert codec.tables.num_dims == 6
    assert codec.shape == shape
    z_hat = features(shape, seed=1)
    z_hat[0] = 1000  # escapes
    codes = codec.compress(z_hat.astype(np.float32))
    decoded = codec.decompress(codes)
    np.testing.assert_array_equal(decoded, z_hat)
    assert decoded.dtype == np.int32
    # An example's string depends on nothing else.
    assert codec.compress(z_hat[7:8]) == [codes[7]]
    plain = sum(map(len, range_coder.compress(codec.tables, z_hat, codec.banks(codes))))
    assert codec.num_bytes(codes) == plain + len(z_hat) * np.log2(num_banks) / 8


def test_banks_make_strings_shorter():
    z_hat = features((60,), n=2000)
    one, two = (FeatureCodec.fit(z_hat, num_banks=num_banks) for num_banks in (1, 2))
    assert two.num_bytes(two.compress(z_hat)) < 0.96 * one.num_bytes(one.compress(z_hat))


def test_tables_are_all_there_is_to_keep():
    codec = FeatureCodec.fit(features((6,)), num_banks=4)
    again = FeatureCodec(RangeCodingTables.from_bytes(codec.tables.to_bytes()), (6,))
    z_hat = features((6,), seed=1)
    np.testing.assert_array_equal(again.decompress(codec.compress(z_hat)), z_hat)


def test_unusable_values_are_refused():
    codec = FeatureCodec.fit(features((2, 3)), num_banks=2)
    with pytest.raises(ValueError, match=r"z_hat has shape \(5, 3\); this codec takes \('n', 2, 3\)"):
        codec.compress(np.zeros((5, 3), np.int32))
    with pytest.raises(ValueError, match="must be positive and end with 3"):
        FeatureCodec(codec.tables, (3, 2))
    good = codec.compress(features((2, 3)))
    with pytest.raises(range_coder.DamagedCodeError) as info:
        codec.decompress([good[0], b"", b"\x02" + good[2][1:]])
    assert info.value.rows == (1, 2)


def test_an_offset_is_what_the_integers_leave_out():
    offset = np.array([0.25, -0.5, 0], np.float32)
    codec = FeatureCodec(FeatureCodec.fit(features((3,))).tables, [3], offset)
    offset[0] = 7
    z = np.array([[0.8, 0.5, 0.5], [1.0, 1.0, 1.5]], np.float32)
    z_hat = codec.quantize(z)
    assert z_hat.tolist() == [[1, 1, 0], [1, 2, 2]]
    assert z_hat.dtype == np.int32
    decoded = codec.with_banks(features((3,)), 2).dequantize(codec.decompress(codec.compress(z_hat)))
    assert decoded.tolist() == [[1.25, 0.5, 0], [1.25, 1.5, 2]]
    assert decoded.dtype == np.float32


def test_without_an_offset_features_are_the_integers():
    codec = FeatureCodec.fit(features((3,)))
    assert codec.quantize([[0.5, 1.5, -0.6]]).tolist() == [[0, 2, -1]]
    assert codec.dequantize(np.array([[0, 2, -1]])).tolist() == [[0, 2, -1]]
    with pytest.raises(ValueError, match="NaN or beyond int32"):
        codec.quantize([[0, np.nan, 0]])


@pytest.mark.parametrize("offset", [np.zeros(2), np.array([0, 0, np.nan])])
def test_an_offset_that_does_not_fit_is_refused(offset):
    with pytest.raises(ValueError, match="quantization_offset must be 3 finite numbers, one a channel"):
        FeatureCodec(FeatureCodec.fit(features((3,))).tables, (3,), offset)


def test_only_an_entropy_model_is_taken_over():
    with pytest.raises(ValueError, match=r"is a dict, and only .*from_lookup"):
        FeatureCodec.from_entropy_model({}, (3,))
