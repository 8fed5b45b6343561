"""A data set: its rows, its manifest, its verification, and reading it for training."""
