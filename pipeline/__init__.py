"""The jobs that a user starts; argument parsing lives here only."""

import logging
import warnings

# What libraries say on being imported that no user of ours can act on: Beam on a checksum library that it then does not
# need and on a module that it imports beside PyTorch, Google's clients on Python 3.11.
_NOISE = ("crcmod package not found", "Resource module is not available", "apitools not found")

warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning)
logging.getLogger().addFilter(lambda record: not str(record.msg).startswith(_NOISE))
