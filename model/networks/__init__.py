"""The bottleneck, its prior, and the networks for videos that have one. Written for Keras 3, on any of its backends."""
