"""How the options of all commands are parsed: types, one-line errors, and suggestions for mistyped names."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from vidpress.model.files.uris import PathError, normalized

# More than any data set has: a petabyte in shards of 10 GB.
MAX_SHARDS = 100_000


class Parser(argparse.ArgumentParser):
    """A parser that refuses an unknown option in one line, with the nearest name that it knows."""

    def __init__(self, *, examples: Sequence[str] = (), epilog: str | None = None, **kwargs: Any) -> None:
        """Take what `argparse` takes by name, and examples for the end of the help."""
        shown = "\n".join(f"  {example}" for example in examples)
        parts = [epilog, f"{'example' if len(examples) == 1 else 'examples'}:\n{shown}" if examples else None]
        super().__init__(
            epilog="\n\n".join(filter(None, parts)) or None,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )
        self._others: Collection[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Check the names, then parse: a mistyped name is reported even if a required option is missing."""
        self._refuse_unknown(list(sys.argv[1:] if args is None else args))
        return super().parse_known_args(args, namespace)

    def parse_with(self, argv: Sequence[str] | None, others: Collection[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and also return the arguments that belong to another parser.

        Args:
          argv: The arguments; by default the program's.
          others: Names of options that another parser will parse.
        """
        self._others = others
        try:
            return self.parse_known_args(argv)
        finally:
            self._others = ()

    def _refuse_unknown(self, argv: Sequence[str]) -> None:
        known = {*self._option_string_actions, *self._others}
        for argument in argv:
            if argument == "--":
                return
            name = argument.split("=", 1)[0]
            if name.startswith("--") and " " not in name and name not in known:
                self.error(f"unknown option {name}{self._hint(name, known)}")

    def _hint(self, name: str, known: Collection[str]) -> str:
        by_letters = {_letters(option): option for option in known if option.startswith("--")}
        nearest = difflib.get_close_matches(_letters(name), by_letters, n=1)
        return f": did you mean {by_letters[nearest[0]]}?" if nearest else f": `{self.prog} --help` lists the options."

    def misspelt(self, name: str) -> bool:
        """Return whether a name is not an option, but close to one."""
        options = self._option_string_actions
        nearest = difflib.get_close_matches(_letters(name), map(_letters, options), n=1, cutoff=0.85)
        return name.startswith("-") and name not in options and bool(nearest)

    def error(self, message: str) -> NoReturn:
        """End the program with one line and exit code 2."""
        if message.startswith("unrecognized arguments: "):
            message = f"{message.removeprefix('unrecognized arguments: ')!r} belongs to no option"
            message += f": `{self.prog} --help` lists the options."
        self.exit(2, f"{self.prog}: error: {message}\n")


def _letters(option: str) -> str:
    return option.replace("-", "_").strip("_").lower()


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the defaults that are informative to the help, and leaves the lines of examples unchanged."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default in (None, [], "") or action.default is False or "(default: " in (action.help or "")
        return action.help if silent else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = text.split("\n\n")
        fill = super()._fill_text
        return "\n\n".join(part if "\n" in part else fill(part, width, indent) for part in parts)


def absolute(path: str) -> str:
    """Return a local path or pattern as an absolute one, for workers in other folders; return a URI unchanged."""
    try:
        path = normalized(path)
        path.encode()
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    except UnicodeEncodeError as error:
        message = f"{path!a} is not UTF-8, and Arrow opens no other names: rename it"
        raise argparse.ArgumentTypeError(message) from error
    return path if path.startswith("gs://") else os.path.abspath(path)


def local_folder(path: str) -> str:
    """Parse a folder that must be on this machine."""
    if path.startswith("gs://"):
        raise argparse.ArgumentTypeError(
            f"{path!r} must be a local folder: copy input from there before, or results to there after"
        )
    return absolute(path)


def model_output(path: str) -> str:
    """Parse the name that a model is written to."""
    if not path.endswith(".safetensors"):
        raise argparse.ArgumentTypeError(f"{path!r} must end in .safetensors, as all models' names do")
    return absolute(path)


def positive_int(text: str) -> int:
    """Parse an option that must be a whole number of at least 1."""
    if not (text.isdecimal() and text.isascii()) or not text.strip("0"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    if len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is too large a number")
    return int(text)


def shards(text: str) -> int:
    """Parse a number of shards."""
    number = positive_int(text)
    if number > MAX_SHARDS:
        raise argparse.ArgumentTypeError(f"{number:,} are more than the {MAX_SHARDS:,} shards that a run may write")
    return number


def fraction(text: str) -> float:
    """Parse an option that must lie in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must lie in [0, 1]")
    return value


def not_negative(text: str) -> float:
    """Parse an option that must be a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of at least 0")
    return value


def boolean(text: str) -> bool:
    """Parse the value of a switch, for launchers that give every option one."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text.lower() == "true"
