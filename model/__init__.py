"""The mathematics of vidpress and its frozen artefact; no Beam here, TensorFlow only where it trains."""

from vidpress.model.data_set.video_dataset import VideoBatch, VideoDataset
from vidpress.model.features import Feature, FeatureSpec

__all__ = ["Feature", "FeatureSpec", "VideoBatch", "VideoDataset"]
