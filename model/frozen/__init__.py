"""The frozen network: one immutable file, and symbols that are the same on every processor."""
