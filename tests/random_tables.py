"""Random range coding tables, and values to code with them."""

import numpy as np
from hypothesis import strategies as st

from vidpress.model.tables.limits import MAX_ESCAPE_BITS
from vidpress.model.tables.range_coding_tables import RangeCodingTables

seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)
# Of a batch but for its last axis.
shapes = st.tuples(st.integers(1, 20)) | st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(1, 4))


def random_tables(rng, num_dims=None, precision=None, max_values=40):
    """Tables of any precision, with intervals of any width and offsets of either sign."""
    num_dims = num_dims or int(rng.integers(1, 12))
    precision = precision or int(rng.integers(1, 17))
    cdf = []
    for _ in range(num_dims):
        num_values = rng.integers(1, min(2**precision - 1, max_values) + 1)
        inner = np.sort(rng.choice(np.arange(1, 2**precision), num_values, replace=False))
        cdf.append(np.concatenate([[0], inner, [2**precision]]))
    start = np.cumsum([0, *map(len, cdf)])
    return RangeCodingTables(np.concatenate(cdf), start, rng.integers(-30, 30, num_dims), precision)


def random_z_hat(rng, tables, shape):
    """Values near zero, and far outliers, up to the farthest that can be coded."""
    scale = rng.choice([1, 10, 1e3, 1e7])
    z_hat = np.rint(rng.standard_cauchy((*shape, tables.num_dims)) * scale)
    far = 2**MAX_ESCAPE_BITS - 100
    return np.clip(z_hat, -far, far).astype(np.int32)


def damaged_variants(rng, code):
    """A code with a flipped bit in each byte, cut off anywhere, and with more after it: in the last one, 100 zeros."""
    flipped = [bytearray(code) for _ in code]
    for place, copy in enumerate(flipped):
        copy[place] ^= 1 << rng.integers(0, 8)
    variants = [bytes(copy) for copy in flipped]
    variants += [code[:length] for length in range(len(code))]
    return [*variants, code + b"\0", code + b"\1", code + code, code + bytes(100)]
