"""What `vidpress train`, `freeze` and `evaluate` share: a network's options, and the steps to a frozen model."""
