"""The rivals of the bottleneck: what users would store instead of its codes."""
