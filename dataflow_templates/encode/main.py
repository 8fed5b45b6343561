"""What the launcher of the Flex Template runs."""

import sys

from vidpress.pipeline.launching.cli import main

if __name__ == "__main__":
    main(["encode", *sys.argv[1:]])
