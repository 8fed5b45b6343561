"""Training a network and freezing it. This room and `vidpress.model.images` are all that imports TensorFlow."""
