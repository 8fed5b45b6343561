"""Range coding tables: how probable each value of each dimension is, in integers; fitting them, and banks of them."""
