"""The benchmarks run, on little, and their page is made. No time is asserted."""

import json
import pathlib
import subprocess
import sys

import pytest
from conftest import REPO

BENCHMARKS = REPO / "benchmarks"


def run(*arguments):
    command = [sys.executable, str(BENCHMARKS / arguments[0]), *map(str, arguments[1:])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_page_has_every_table_target_and_figure(tmp_path):
    cells = {"vidpress": {"values": [3.0, 1.0, 2.0], "form": ",.1f"}, "other": {"values": [0.5], "form": ",.1f"}}
    for name in ("encode-3-layer", "range-coder"):
        fields = {
            "title": f"Title of {name}",
            "columns": ["vidpress", "other"],
            "notes": ["said of it"],
            "rows": [["a: encode, M symbols/s", cells]],
            "targets": [{"what": f"{name} against other", "at_least": 5.0, "ratio": 4.0}],
            "machine": ["a processor", "a load", f"versions for {name}"],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(fields))
    page = tmp_path / "page.md"
    run("report.py", "--results", tmp_path, "--page", page, "--only_page")
    text = page.read_text()
    for name in ("encode-3-layer", "range-coder"):
        assert f"## Title of {name}\n\n- said of it\n" in text
        assert f"| {name} against other | 5 | 4.00 (missed) |" in text
    assert "| a: encode, M symbols/s | 2.0 (1.0 to 3.0) | 0.5 |" in text
    assert "- a processor\n- a load\n- versions for encode-3-layer\n- versions for range-coder\n" in text
    missing = ("bound", "lanes", "reading", "lookup", "compaction", "start_up", "growth", "training")
    assert f"\nNot measured in this run: {', '.join(f'`{name}.py`' for name in missing)}.\n" in text
    assert page.with_suffix(".svg").read_text().startswith("<?xml")


def test_a_page_of_no_results_is_refused(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "report.py"), "--results", str(tmp_path), "--only_page"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        f"{tmp_path} has no results of a benchmark: run `make bench` first.\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("reading.py", "--repeats", "1", "--num_videos", "300"),
        ("compaction.py", "--repeats", "1", "--generations", "4", "--videos_a_generation", "30"),
        ("lookup.py", "--repeats", "1", "--num_videos", "9000", "--lookups", "20"),
        ("growth.py", "--repeats", "1", "--records", "2"),
        ("training.py", "--repeats", "1", "--steps", "1", "--hidden", "20", "--batch_size", "10"),
    ],
    ids=lambda arguments: pathlib.Path(arguments[0]).stem,
)
def test_benchmark_runs(arguments, tmp_path):
    """Each checks by itself that what it times gives the right result. `tests/tfc` runs the coder's."""
    pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")
    output = run(*arguments, "--json", tmp_path / "results.json")
    fields = json.loads((tmp_path / "results.json").read_text())
    assert fields["title"] in output
    assert fields["rows"]
    assert all(cell["values"] for _, cells in fields["rows"] for cell in cells.values())
