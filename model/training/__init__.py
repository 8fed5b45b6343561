"""Training a network and freezing it: batches, steps, checkpoints, tables."""
