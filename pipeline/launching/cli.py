"""The `vidpress` command: its sub-commands are the `main(argv)` of the modules here."""

from __future__ import annotations

import difflib
import importlib
import io
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import vidpress
from vidpress.model.extras import needed
from vidpress.pipeline.launching.reporting import explained_errors, quiet_libraries


class Command(NamedTuple):
    """What a command does, and the extras of vidpress that it needs, separated by commas."""

    does: str
    extras: str = ""


COMMANDS = {
    "train": Command("train a bottleneck network and freeze it", "train"),
    "freeze": Command("freeze a trained network at another rate or with other tables", "train"),
    "encode": Command("encode TFRecords to a data set of Parquet shards, with Beam", "beam"),
    "evaluate": Command("train at several rates, and compare with the alternatives", "train,report"),
    "decode": Command("decode a data set to TFRecords or Parquet, with Beam", "beam"),
    "compact": Command("write the videos of many generations as one, and remove what that replaces, with Beam", "beam"),
    "get": Command("print or write videos of a data set by their ids"),
    "verify": Command("check a data set against its manifest"),
    "inspect": Command("describe a model, a shard or a data set"),
    "demo": Command("run all of these on a small data set", "beam,train"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command."""
    args = list(sys.argv[1:] if argv is None else argv)
    quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be UTF-8
    if args[:1] == ["help"]:
        args = [*args[1:2], "--help"]
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    if command in COMMANDS:
        # The import is inside the block because it takes seconds, and Ctrl-C may come in that time.
        with explained_errors(f"vidpress {command}"):
            imported(command).main(rest)
    elif command in ("--version", "-h", "--help"):
        with explained_errors("vidpress"):
            print(f"vidpress {vidpress.__version__}" if command == "--version" else _help())
    else:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"choose from {', '.join(COMMANDS)}"
        print(f"vidpress: error: no command {command!r}: {hint}", file=sys.stderr)
        raise SystemExit(2)


def imported(command: str) -> ModuleType:
    """Import a command's module.

    Raises:
      MissingLibraryError: If a library that the command needs is not installed.
    """
    with needed("this command", COMMANDS[command].extras):
        return importlib.import_module(f"vidpress.pipeline.{command}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: vidpress COMMAND [options]; `vidpress COMMAND --help` lists the options\n",
            *(
                f"  {name:<{width}}  {does}{f' (needs vidpress[{extras}])' if extras else ''}"
                for name, (does, extras) in COMMANDS.items()
            ),
            "\nexample:\n  vidpress encode --input 'yt8m/*.tfrecord' --model model.safetensors --output compact",
        ]
    )


if __name__ == "__main__":
    main()
