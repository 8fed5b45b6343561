"""Files by path or URI: which of them a pattern names, what they are, and writing them so that they outlive a crash."""
