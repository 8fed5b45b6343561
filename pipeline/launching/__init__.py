"""What the commands share: options, runners, errors in one line, stopping, and worker processes."""
