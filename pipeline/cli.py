"""The `vidpress` command: its sub-commands are the `main(argv)` of the modules here."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train a bottleneck network and freeze it (needs the extra vidpress[train])",
    "freeze": "take another rate or other tables from a training (needs the extra vidpress[train])",
    "encode": "encode TFRecords to a data set of Parquet shards, with Beam",
    "evaluate": "train over a sweep of rates, and measure against everything else (needs vidpress[train,report])",
    "decode": "decode a data set to TFRecords or Parquet, with Beam",
    "verify": "check a data set against its manifest",
    "inspect": "say what a model, a shard or a data set is",
    "demo": "run all of it on a small data set (needs the extra vidpress[train])",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args and args[0] == "--version":
        print(f"vidpress {importlib.metadata.version('vidpress')}")
    elif args and args[0] in COMMANDS:
        importlib.import_module(f"vidpress.pipeline.{args[0]}").main(args[1:])
    elif not args or args[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: vidpress COMMAND [options]; `vidpress COMMAND --help` lists the options\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()))
    else:
        print(f"vidpress: error: no command {args[0]!r}: choose from {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main()
