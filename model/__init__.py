"""The mathematics of vidpress and its file formats, without Beam. docs/api.md describes the names that are public.

Each is loaded when it is first used, because some need Keras, which workers do not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidpress.model.extras import MissingLibraryError, missing

if TYPE_CHECKING:
    from vidpress.model.coding.feature_codec import FeatureCodec
    from vidpress.model.data_set.input_lists import InputFile
    from vidpress.model.data_set.manifest import Manifest
    from vidpress.model.data_set.rows import DeadLetter
    from vidpress.model.errors import VidpressError
    from vidpress.model.features import Feature, FeatureSpec
    from vidpress.model.frozen.frozen_model import FrozenModel
    from vidpress.model.kept_columns import KeptColumn
    from vidpress.model.networks import plug_in
    from vidpress.model.networks.bottleneck import Bottleneck
    from vidpress.model.reading.video_batch import RaggedLabels, VideoBatch, VideoBatchWithColumns
    from vidpress.model.reading.video_dataset import VideoDataset
    from vidpress.model.records.videos import PooledVideo, Video
    from vidpress.model.shards.shard_header import ShardHeader
    from vidpress.model.tables.range_coding_tables import RangeCodingTables
else:
    # Hidden from type checkers, which would take any name for one of these.
    _MODULES = {
        "Bottleneck": "vidpress.model.networks.bottleneck",
        "DeadLetter": "vidpress.model.data_set.rows",
        "Feature": "vidpress.model.features",
        "FeatureCodec": "vidpress.model.coding.feature_codec",
        "FeatureSpec": "vidpress.model.features",
        "FrozenModel": "vidpress.model.frozen.frozen_model",
        "InputFile": "vidpress.model.data_set.input_lists",
        "KeptColumn": "vidpress.model.kept_columns",
        "Manifest": "vidpress.model.data_set.manifest",
        "PooledVideo": "vidpress.model.records.videos",
        "RaggedLabels": "vidpress.model.reading.video_batch",
        "RangeCodingTables": "vidpress.model.tables.range_coding_tables",
        "ShardHeader": "vidpress.model.shards.shard_header",
        "VideoBatch": "vidpress.model.reading.video_batch",
        "VideoBatchWithColumns": "vidpress.model.reading.video_batch",
        "VideoDataset": "vidpress.model.reading.video_dataset",
        "Video": "vidpress.model.records.videos",
        "VidpressError": "vidpress.model.errors",
        "plug_in": "vidpress.model.networks",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            # As `from MODULE import NAME` does, so that a name may be a module's own.
            value = getattr(__import__(_MODULES[name], fromlist=[name]), name)
        except ModuleNotFoundError as error:
            if error.name != "keras":
                raise
            raise MissingLibraryError(missing(name, "keras", "train"), name="keras") from error
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__all__ = [
    "Bottleneck",
    "DeadLetter",
    "Feature",
    "FeatureCodec",
    "FeatureSpec",
    "FrozenModel",
    "InputFile",
    "KeptColumn",
    "Manifest",
    "PooledVideo",
    "RaggedLabels",
    "RangeCodingTables",
    "ShardHeader",
    "Video",
    "VideoBatch",
    "VideoBatchWithColumns",
    "VideoDataset",
    "VidpressError",
    "plug_in",
]
