"""What the launcher of the Flex Template runs."""

import argparse

from vidpress.pipeline.launching.cli import main

if __name__ == "__main__":
    # A template's parameters come as options, and the command takes the folder as it is.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--data_set", required=True)
    args, others = parser.parse_known_args()
    main(["compact", args.data_set, *others])
