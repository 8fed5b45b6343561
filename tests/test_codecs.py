"""The rivals' codecs against brute force."""

import io
import itertools
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidpress.pipeline.evaluation import codecs

RNG = np.random.default_rng(0)
# Like activations behind a ReLU: correlated, mostly 0.
Z = np.maximum(RNG.normal(size=(600, 5)) @ RNG.normal(size=(5, 12)) - 0.5, 0).astype(np.float32)


def test_float32_gives_back_the_numbers_for_zlibs_bytes():
    codec = codecs.Float32()
    codes = codec.encode(Z)
    np.testing.assert_array_equal(codec.decode(codes), Z)
    assert codec.num_bytes(codes) == sum(len(zlib.compress(row.astype("<f4").tobytes(), 9)) for row in Z)


def test_float16_is_numpys_for_zlibs_bytes():
    codec = codecs.Float16()
    codes = codec.encode(Z)
    np.testing.assert_array_equal(codec.decode(codes), Z.astype(np.float16).astype(np.float32))
    assert codec.num_bytes(codes) == sum(len(zlib.compress(row.astype("<f2").tobytes(), 9)) for row in Z)
    assert np.isfinite(codec.decode(codec.encode(np.array([[1e30, -1e30]], np.float32)))).all()


@pytest.mark.parametrize("num_bins", [2**16, 2**8, 2**4, 2**2])
def test_quantized_takes_the_nearest_bin(num_bins):
    codec = codecs.fit_quantized(Z, num_bins)
    middles = [Z.min() + (Z.max() - Z.min()) * k / (num_bins - 1) for k in range(num_bins)]
    some = Z[:20]
    codes = codec.encode(some)
    for value, code, restored in zip(some.flat, codes.flat, codec.decode(codes).flat, strict=True):
        if num_bins <= 256:
            assert abs(value - middles[code]) <= min(abs(value - middle) for middle in middles) + 1e-6
        assert restored == pytest.approx(middles[code], abs=1e-6)
        assert abs(restored - value) <= (Z.max() - Z.min()) / (num_bins - 1) / 2 + 1e-6
    assert (codec.decode(codes)[some == 0] == 0).all()
    assert codes.dtype == (np.uint8 if num_bins <= 256 else np.uint16)
    assert codec.num_bytes(codes) == sum(len(zlib.compress(row.tobytes(), 9)) for row in codes)
    beyond = codec.decode(codec.encode(np.array([[-1e9, 1e9]], np.float32)))
    np.testing.assert_allclose(beyond, [[Z.min(), Z.max()]], rtol=1e-6)


def test_int8_has_a_range_for_each_dimension():
    scaled = Z * np.logspace(-3, 3, Z.shape[1], dtype=np.float32)
    scaled[:, 4] = 7.5
    codec = codecs.fit_int8(scaled)
    restored = codec.decode(codec.encode(scaled))
    assert (np.abs(restored - scaled) <= np.ptp(scaled, axis=0) / 255 / 2 * 1.001).all()
    assert (restored[:, 4] == 7.5).all()


@pytest.mark.parametrize("codec", [codecs.fit_int8(Z), codecs.Float16Parquet()])
def test_what_users_store_is_counted_in_a_parquet_file(codec):
    codes = codec.encode(Z)
    table = pa.table({"features": pa.array([row.tobytes() for row in codes], pa.binary(codes[0].nbytes))})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    assert codec.num_bytes(codes) == column.total_compressed_size
    assert column.compression == "ZSTD"
    assert column.total_compressed_size < len(file.getvalue())


def test_principal_components_are_those_of_the_singular_values():
    everything = codecs.fit_principal_components(Z)
    centred = Z - Z.mean(axis=0, dtype=np.float64)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(everything.variances, singular**2 / len(Z), atol=1e-9)
    for size in (1, 3, 12):
        codec = everything.first(size)
        codes = codec.encode(Z)
        assert codes.shape == (len(Z), size)
        assert codec.num_bytes(codes) == 4 * size * len(Z)
        expected = centred @ vectors[:size].T @ vectors[:size] + Z.mean(axis=0, dtype=np.float64)
        np.testing.assert_allclose(codec.decode(codes), expected, atol=1e-4)


@pytest.mark.parametrize("num_bytes", [1, 4, 5])
def test_product_quantizer_takes_the_nearest_centroids(num_bytes):
    faiss = pytest.importorskip("faiss")
    codec = codecs.fit_product_quantizer(Z, num_bytes)
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
    pytest.importorskip("faiss")
    first, second = (codecs.fit_product_quantizer(Z, 4).encode(Z) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_rotated_product_quantizer_quantizes_the_components():
    pytest.importorskip("faiss")
    # Every dimension is a mixture of a few: only a rotation tells them apart.
    z = (RNG.normal(size=(2000, 4)) @ RNG.normal(size=(4, 12)) + RNG.normal(0, 0.1, (2000, 12)) + 3).astype(np.float32)
    codec = codecs.fit_rotated_product_quantizer(z, 4, codecs.fit_principal_components(z))
    codes = codec.encode(z)
    assert codes.shape == (len(z), 4)
    restored = codec.decode(codes)
    # A rotation keeps distances: what is decoded lies where its code says.
    np.testing.assert_array_equal(codec.encode(restored), codes)
    plain = codecs.fit_product_quantizer(z, 4)
    error = ((restored - z) ** 2).mean()
    assert error < 0.7 * ((plain.decode(plain.encode(z)) - z) ** 2).mean()


@pytest.mark.parametrize(("num_videos", "num_bytes", "message"), [(255, 4, "255 videos"), (300, 13, "12 dimensions")])
def test_what_cannot_be_quantized_is_refused(num_videos, num_bytes, message):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=message):
        codecs.fit_product_quantizer(Z[:num_videos], num_bytes)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_parts_are_balanced_whatever_the_scale(scale):
    variances = np.array([8.0, 4, 2, 1, 0.5, 0.25]) * scale
    order = codecs.balanced_parts(variances, 2)
    assert sorted(order) == list(range(6))
    spread = abs(np.diff(np.log2(variances[order]).reshape(2, 3).sum(axis=1))[0])
    best = min(
        abs(np.log2(variances[list(part)]).sum() * 2 - np.log2(variances).sum())
        for part in itertools.combinations(range(6), 3)
    )
    assert spread == pytest.approx(best)
    # The two largest never share a part.
    assert {index // 3 for index in (list(order).index(0), list(order).index(1))} == {0, 1}
