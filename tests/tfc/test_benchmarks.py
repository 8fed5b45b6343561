"""The range coder's benchmark runs, on little: it checks by itself that both coders write the same."""

import json
import subprocess
import sys

from conftest import REPO


def test_range_coder(tmp_path):
    script = str(REPO / "benchmarks" / "range_coder.py")
    arguments = ["--repeats", "1", "--num_videos", "40", "--json", str(tmp_path / "results.json")]
    result = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    fields = json.loads((tmp_path / "results.json").read_text())
    assert fields["title"] in result.stdout
    assert {"vidpress", "tensorflow-compression"} <= set(fields["columns"])
    assert all(cell["values"] for _, cells in fields["rows"] for cell in cells.values())
