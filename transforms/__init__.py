"""The Beam transforms of vidpress: thin wiring around `vidpress.model`. docs/api.md describes those that are public."""

from vidpress.model.extras import needed

with needed("vidpress.transforms", "beam"):
    from vidpress.transforms.decode_videos import DecodeVideos
    from vidpress.transforms.encode_videos import EncodeVideos
    from vidpress.transforms.pool_frames import PoolFrames
    from vidpress.transforms.read_shards import ReadShards
    from vidpress.transforms.read_videos import ReadVideos
    from vidpress.transforms.write_features import WriteFeatures
    from vidpress.transforms.write_shards import WriteShards

__all__ = [
    "DecodeVideos",
    "EncodeVideos",
    "PoolFrames",
    "ReadShards",
    "ReadVideos",
    "WriteFeatures",
    "WriteShards",
]
