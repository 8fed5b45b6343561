"""What `vidpress evaluate` measures, and how results and page tell of it."""
