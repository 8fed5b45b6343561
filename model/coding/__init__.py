"""Range coding: integer tables, banks of them, and the codes, which are tensorflow-compression's bitstream."""
