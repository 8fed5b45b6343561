"""What all commands share, without Beam: options, checks before any work, errors in one line, and stopping."""
