"""What `vidpress evaluate` measures."""
