"""Range coding: integers to codes and back, in tensorflow-compression's bitstream."""
