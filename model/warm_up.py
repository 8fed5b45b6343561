"""Compile every loop that encoding and decoding run, and keep the machine code: `python -m vidpress.model.warm_up`.

Without it, the first process on a machine compiles for seconds before its first record. An image should hold what this
leaves beside the modules, or in the folder that NUMBA_CACHE_DIR names. Machine code is for one kind of processor:
others compile anew.
"""

from __future__ import annotations

import numpy as np

from vidpress.model.features import FeatureSpec
from vidpress.model.frozen_model import FrozenModel
from vidpress.model.range_coding_tables import RangeCodingTables
from vidpress.model.rows import encode_videos
from vidpress.model.shard import decode_codes
from vidpress.model.synthetic import serialize_video
from vidpress.model.table_banks import fit_banks
from vidpress.model.videos import parse_video, pool_frames


def warm_up() -> None:
    """Encode and decode two made-up videos, by networks of two units that always come to lie at a half."""
    spec = FeatureSpec.parse("rgb:512,audio:1")  # sums of so many inputs are in parts
    layers = tuple(
        (np.zeros((size_in, 1), np.float32), np.full(1, 0.5, np.float32)) for size_in in (spec.input_size, 1)
    )
    values = np.array([[0], [1], [0]], np.int32)
    tables = fit_banks(RangeCodingTables.fit(values), values, 2)
    videos = []
    for num_frames in (1, 2):  # a single frame lies in the record without a gap, which is another type to the compiler
        frames = np.ones((num_frames, spec.input_size), np.uint8)
        payload = serialize_video(b"id", np.array([1]), frames, spec)
        videos.append(pool_frames(parse_video(payload, spec), spec))
    for rounds_every_layer in (False, True):
        model = FrozenModel(spec, layers, tables, rounding_lmbda=0.03, rounds_every_layer=rounds_every_layer)
        # Read back, since loops are compiled anew for arrays that cannot be written.
        model = FrozenModel.from_bytes(model.to_bytes())
        decode_codes(encode_videos(model, videos).rows, model.tables)


if __name__ == "__main__":
    warm_up()
