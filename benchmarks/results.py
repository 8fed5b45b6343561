"""What a benchmark found: printed as text and kept as JSON, from which `report.py` makes the page."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from vidpress.pipeline.launching import machine


@dataclasses.dataclass
class Cell:
    """The values that several turns gave, and how they are written."""

    values: list[float]
    form: str = ",.0f"

    def __str__(self) -> str:
        median = f"{statistics.median(self.values):{self.form}}"
        if len(self.values) == 1:
            return median
        return f"{median} ({min(self.values):{self.form}} to {max(self.values):{self.form}})"


@dataclasses.dataclass
class Target:
    """A ratio that is to be at least so much."""

    what: str
    at_least: float
    ratio: float


@dataclasses.dataclass
class Report:
    """One benchmark's table: a line for each thing measured, a column for each alternative."""

    title: str
    columns: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    rows: list[tuple[str, dict[str, Cell]]] = dataclasses.field(default_factory=list)
    targets: list[Target] = dataclasses.field(default_factory=list)

    def note(self, text: str) -> None:
        """Say on what, or how, something was measured."""
        self.notes.append(text)

    def row(self, label: str, cells: Mapping[str, float | Sequence[float]], form: str = ",.0f") -> None:
        """Add a line: for some of the columns one value, or that of each turn."""
        for name in cells:
            if name not in self.columns:
                self.columns.append(name)
        listed = {name: list(value) if isinstance(value, Sequence) else [value] for name, value in cells.items()}
        self.rows.append((label, {name: Cell(values, form) for name, values in listed.items()}))

    def target(self, what: str, at_least: float, ratio: float) -> None:
        """Compare a ratio with what it is to be."""
        self.targets.append(Target(what, at_least, ratio))

    def finish(self, args: argparse.Namespace) -> None:
        """Print the report, and write it where `--json` says."""
        print(self.text())
        if args.json:
            fields = {**dataclasses.asdict(self), "machine": machine.describe().splitlines()}
            pathlib.Path(args.json).write_text(json.dumps(fields, indent=1))

    @classmethod
    def load(cls, path: pathlib.Path) -> tuple[Report, list[str]]:
        """Read back a report, and what it says of its machine."""
        fields = json.loads(path.read_text())
        rows = [(label, {name: Cell(**cell) for name, cell in cells.items()}) for label, cells in fields["rows"]]
        targets = [Target(**target) for target in fields["targets"]]
        return cls(fields["title"], fields["columns"], fields["notes"], rows, targets), fields["machine"]

    def text(self) -> str:
        """Return the report as it is printed."""
        lines = [["", *self.columns]]
        lines += [[label, *(str(cells.get(name, "")) for name in self.columns)] for label, cells in self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        targets = [
            f"{target.what}: {target.ratio:.2f} of at least {target.at_least:.2f}, "
            f"{'met' if target.ratio >= target.at_least else 'NOT MET'}"
            for target in self.targets
        ]
        return "\n".join([f"\n{self.title}", *self.notes, "median (least to most)", *table, *targets])

    def markdown(self) -> str:
        """Return the report as a section of the page."""
        lines = [f"| {' | '.join(['', *self.columns])} |", f"| --- |{' ---: |' * len(self.columns)}"]
        lines += [
            f"| {' | '.join([label, *(str(cells.get(name, '')) for name in self.columns)])} |"
            for label, cells in self.rows
        ]
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"## {self.title}\n\n{notes}\n\n" + "\n".join(lines) + "\n"


def parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """Return a command line with what all benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each (default: %(default)s)")
    parser.add_argument("--json", help="also write the results to this file")
    return parser
