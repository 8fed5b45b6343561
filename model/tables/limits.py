"""How large range coding tables may be, so that no file makes a reader allocate more than it should."""

# An escaped value is coded by its distance from the table, which has at most this many bits: tensorflow-compression's
# loop for the Elias gamma code (`OverflowEncode` in cc/kernels/range_coder_kernels.cc) does not end at 2^30.
MAX_ESCAPE_BITS = 30
# Any distance then leads to an int32.
MAX_OFFSET = 2**29

# A row group of 4096 videos is decoded at once, to 128 MiB with this many dimensions.
MAX_DIMS = 2**13
MAX_BANKS = 256
# Entries of all dimensions' distributions together. Tables fitted to 2000 dimensions of YouTube-8M have some 20,000.
MAX_ENTRIES = 2**21
# Entries of the distributions of all banks together; a distribution that banks share is counted once. With 256 banks,
# the tables of 2000 dimensions of YouTube-8M have some 500,000.
MAX_BANK_ENTRIES = 2**24
