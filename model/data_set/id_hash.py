"""Which shard of a data set an id belongs to."""

from __future__ import annotations

import hashlib


def hash_of(key: bytes) -> int:
    """Return the BLAKE2b hash of a key, of 8 bytes, little endian."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def shard_of(key: bytes, num_shards: int) -> int:
    """Return the shard of a key: its hash modulo `num_shards`."""
    return hash_of(key) % num_shards
