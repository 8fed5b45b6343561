"""How videos go from step to step where Beam does not fuse the steps."""

from __future__ import annotations

import pickle

import apache_beam as beam

from vidpress.model.records.videos import PooledVideo, Video


class VideoCoder(beam.coders.Coder):
    """Pickles videos, and finds their size without pickling them.

    Beam measures the size of many elements even between fused steps. Its own coder would copy each video's frames to do
    so.
    """

    def encode(self, value: Video | PooledVideo) -> bytes:
        """Return the pickled video."""
        return pickle.dumps(value, protocol=5)

    def decode(self, encoded: bytes) -> Video | PooledVideo:
        """Return the video."""
        return pickle.loads(encoded)

    def estimate_size(self, value: Video | PooledVideo) -> int:
        """Return the bytes of the video's features."""
        if isinstance(value, Video):
            return sum(features.nbytes for features in value.features.values())
        return value.x.nbytes

    def is_deterministic(self) -> bool:
        """Return whether a video may be a key."""
        return False
