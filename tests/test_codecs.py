"""The rivals' codecs against brute force."""

import io
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidpress.pipeline.evaluation.rivals import codecs

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


def test_of_few_vectors_the_principal_components_are_the_same():
    wide = np.random.default_rng(1).gamma(1, 1, (30, 5000)).astype(np.float32)
    found = codecs.fit_principal_components(wide)
    assert found.basis.shape == (5000, 29)
    np.testing.assert_allclose(found.basis.T @ found.basis, np.eye(29), atol=1e-9)
    centred = wide - wide.mean(axis=0, dtype=np.float64)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(found.variances, singular[:29] ** 2 / 30)
    expected = centred @ vectors[:7].T @ vectors[:7] + found.mean
    first = found.first(7)
    np.testing.assert_allclose(first.decode(first.encode(wide)), expected, atol=1e-4)
