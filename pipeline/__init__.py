"""The jobs that a user starts; argument parsing lives here only."""
