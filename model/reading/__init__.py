"""Reading a data set: for training, by id, and as tables."""
