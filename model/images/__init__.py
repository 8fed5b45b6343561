"""The image benchmarks: data sets of images, which network is trained on which, and training it."""
