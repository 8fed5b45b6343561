"""How Beam jobs are run: which runners are accepted, and worker processes that end with their launcher."""
