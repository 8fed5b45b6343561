"""Adding a generation to a data set: which videos it has already, and files that are complete or absent."""
