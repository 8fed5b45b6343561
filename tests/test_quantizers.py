"""Vector quantizers."""

import itertools

import numpy as np
import pytest

from vidpress.pipeline.evaluation.rivals import codecs, quantizers

faiss = pytest.importorskip("faiss", reason="needs the extra vidpress[report]")

RNG = np.random.default_rng(0)
Z = np.maximum(RNG.normal(size=(600, 5)) @ RNG.normal(size=(5, 12)) - 0.5, 0).astype(np.float32)


@pytest.mark.parametrize("num_bytes", [1, 4, 5])
def test_product_quantizer_takes_the_nearest_centroids(num_bytes):
    codec = quantizers.fit_product_quantizer(Z, num_bytes)
    codes = codec.encode(Z[:30])
    assert codes.shape == (30, num_bytes)
    assert codec.num_bytes(codes) == 30 * num_bytes
    width = -(-12 // num_bytes)
    padded = np.pad(Z[:30], ((0, 0), (0, width * num_bytes - 12)))
    centroids = faiss.vector_to_array(codec.quantizer.centroids).reshape(num_bytes, 256, width)
    restored = codec.decode(codes)
    for row, (vector, code) in enumerate(zip(padded, codes, strict=True)):
        parts = []
        for part in range(num_bytes):
            distances = ((centroids[part] - vector[part * width : (part + 1) * width]) ** 2).sum(axis=1)
            assert distances[code[part]] <= distances.min() + 1e-5
            parts.append(centroids[part, code[part]])
        np.testing.assert_array_equal(restored[row], np.concatenate(parts)[:12])


def test_product_quantizer_repeats_itself():
    first, second = (quantizers.fit_product_quantizer(Z, 4).encode(Z) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_rotated_product_quantizer_quantizes_the_components():
    # Every dimension is a mixture of a few: only a rotation tells them apart.
    z = (RNG.normal(size=(2000, 4)) @ RNG.normal(size=(4, 12)) + RNG.normal(0, 0.1, (2000, 12)) + 3).astype(np.float32)
    codec = quantizers.fit_to_components(
        quantizers.fit_product_quantizer, z, 4, codecs.fit_principal_components(z), quantizers.COMPONENTS_PER_BYTE
    )
    codes = codec.encode(z)
    assert codes.shape == (len(z), 4)
    restored = codec.decode(codes)
    # A rotation keeps distances: what is decoded lies where its code says.
    np.testing.assert_array_equal(codec.encode(restored), codes)
    plain = quantizers.fit_product_quantizer(z, 4)
    error = ((restored - z) ** 2).mean()
    assert error < 0.7 * ((plain.decode(plain.encode(z)) - z) ** 2).mean()


@pytest.mark.parametrize(("num_videos", "num_bytes", "message"), [(255, 4, "255 videos"), (300, 13, "12 dimensions")])
def test_what_cannot_be_quantized_is_refused(num_videos, num_bytes, message):
    with pytest.raises(ValueError, match=message):
        quantizers.fit_product_quantizer(Z[:num_videos], num_bytes)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_parts_are_balanced_whatever_the_scale(scale):
    variances = np.array([8.0, 4, 2, 1, 0.5, 0.25]) * scale
    order = quantizers.balanced_parts(variances, 2)
    assert sorted(order) == list(range(6))
    spread = abs(np.diff(np.log2(variances[order]).reshape(2, 3).sum(axis=1))[0])
    best = min(
        abs(np.log2(variances[list(part)]).sum() * 2 - np.log2(variances).sum())
        for part in itertools.combinations(range(6), 3)
    )
    assert spread == pytest.approx(best)
    # The two largest never share a part.
    assert {index // 3 for index in (list(order).index(0), list(order).index(1))} == {0, 1}


def error(codec, z):
    return ((codec.decode(codec.encode(z)) - z) ** 2).mean() / z.var()


def mixtures(num_videos=2000, num_dims=12):
    """Every dimension is a mixture of a few: only a rotation tells them apart."""
    few = RNG.normal(size=(num_videos, 4)) @ RNG.normal(size=(4, num_dims))
    return (few + RNG.normal(0, 0.1, (num_videos, num_dims)) + 3).astype(np.float32)


def test_an_optimized_rotation_is_better_than_none():
    z = mixtures()
    codec = quantizers.fit_optimized_product_quantizer(z, 4)
    codes = codec.encode(z)
    assert (codes.shape, codes.dtype) == ((len(z), 4), np.uint8)
    np.testing.assert_array_equal(codec.encode(codec.decode(codes)), codes)
    assert error(codec, z) < 0.7 * error(quantizers.fit_product_quantizer(z, 4), z)


def test_a_residual_quantizer_adds_up_centroids():
    z = mixtures()
    errors = [error(quantizers.fit_residual_quantizer(z, num_bytes), z) for num_bytes in (1, 2, 4)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < error(quantizers.fit_product_quantizer(z, 4), z)


def test_a_local_search_quantizer_codes_parts_with_four_bytes():
    z = mixtures(1000)
    codec = quantizers.fit_local_search_quantizer(z, 8)
    codes = codec.encode(z)
    assert (codes.shape, codes.dtype) == ((len(z), 8), np.uint8)
    # A part's code says nothing about the other part.
    other = codes.copy()
    other[:, 4:] = codes[::-1, 4:]
    np.testing.assert_allclose(codec.decode(other)[:, :6], codec.decode(codes)[:, :6], atol=1e-5)
    assert error(codec, z) < error(quantizers.fit_product_quantizer(z, 4), z)


@pytest.mark.parametrize("name", ["optimized_product", "residual"])
def test_quantizers_of_leading_components_lose_what_the_others_hold(name):
    z = mixtures()
    components = codecs.fit_principal_components(z)
    fit = getattr(quantizers, f"fit_{name}_quantizer")
    all_of_them = quantizers.fit_to_components(fit, z, 4, components, 3)
    leading = quantizers.fit_to_components(fit, z, 4, components, 1)
    assert leading.encode(z).shape == (len(z), 4)
    first = components.first(4)
    np.testing.assert_allclose(
        first.decode(first.encode(leading.decode(leading.encode(z)))), leading.decode(leading.encode(z)), atol=1e-4
    )
    # Four components hold nearly all: there is little else to code.
    assert error(leading, z) < error(first, z) + 0.2
    assert error(all_of_them, z) < 0.2


FITS = [
    quantizers.fit_product_quantizer,
    quantizers.fit_optimized_product_quantizer,
    quantizers.fit_residual_quantizer,
    quantizers.fit_local_search_quantizer,
]


def test_parts_of_local_search_have_four_bytes():
    with pytest.raises(ValueError, match="6 bytes are not whole parts of a local-search quantizer"):
        quantizers.fit_local_search_quantizer(Z, 6)


@pytest.mark.parametrize("fit", FITS)
def test_too_few_videos_are_refused(fit):
    with pytest.raises(ValueError, match="255 videos are too few"):
        fit(Z[:255], 4)


@pytest.mark.parametrize("fit", [fit for fit in FITS if "residual" not in fit.__name__])
def test_too_many_bytes_are_refused(fit):
    with pytest.raises(ValueError, match="12 dimensions cannot be quantized to 16 bytes"):
        fit(Z[:300], 16)
