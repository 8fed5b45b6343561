"""The examples of docs/reading.md, on a data set of the demo's ids."""

import re
import shlex
import shutil

import pytest
from conftest import REPO
from data_sets import write_data_set

from vidpress.pipeline.launching import cli

TEXT = (REPO / "docs" / "reading.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
NEEDED = ("keras", "torch", "torchdata", "grain", "datasets", "pandas", "polars", "duckdb", "pyspark")


@pytest.fixture
def compact(model, tmp_path, monkeypatch):
    (tmp_path / "compact").mkdir()
    write_data_set(tmp_path / "compact", model, 700, num_shards=2)
    shutil.copytree(REPO / "tests" / "golden" / "data-set-v5", tmp_path / "titled")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_python_example_runs(compact, index, no_garbage):
    imported = re.findall(r"^(?:import|from) .*", "\n".join(EXAMPLES[:index]), flags=re.MULTILINE)
    used = [line for line in imported if re.search(rf"\b{line.split()[-1]}\b", EXAMPLES[index])]
    example = "\n".join([*used, EXAMPLES[index]])
    for name in NEEDED:
        if re.search(rf"(import|from) {name}\b|to_{name}\b", example):
            pytest.importorskip(name)
    exec(example, {})


def test_commands_run(compact, tmp_path, capsys):
    (block,) = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "ids.txt").write_text("0000001\n0000002\n")
    for line in block.strip().splitlines():
        cli.main(shlex.split(re.sub("demo-0*", "000000", line))[1:])
    assert capsys.readouterr().out.count('"id": "000000') == 2
    assert (tmp_path / "videos.parquet").exists()
