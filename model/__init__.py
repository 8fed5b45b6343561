"""The mathematics of vidpress and its frozen artefact; no Beam here, TensorFlow only where it trains."""
