"""The names that users are promised: what is exported, what docs/api.md lists, and what the docs' examples import."""

import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest
from apache_beam.testing.util import assert_that, equal_to
from conftest import REPO, frame_level, write_records

import vidpress.model
import vidpress.transforms
from vidpress.model import Manifest

PUBLIC = {"vidpress.model", "vidpress.transforms"}
NEED_KERAS = {"Bottleneck", "plug_in"}
PAGES = [REPO / "README.md", REPO / "ARCHITECTURE.md", REPO / "CONTRIBUTING.md", *(REPO / "docs").rglob("*.md")]


def python_blocks(page) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def listed_names(package: str) -> list[str]:
    """Return the names of the first column of a package's table in docs/api.md."""
    (section,) = re.findall(
        rf"^## `{re.escape(package)}`\n(.*?)(?=^## |\Z)", (REPO / "docs/api.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize("package", [vidpress.model, vidpress.transforms])
def test_api_page_lists_exactly_what_is_exported(package):
    names = listed_names(package.__name__)
    assert len(names) == len(set(names))
    assert {name.partition(".")[0] for name in names} == set(package.__all__)
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("package", [vidpress.model, vidpress.transforms])
def test_every_listed_name_is_there(package):
    for name in listed_names(package.__name__):
        first, _, rest = name.partition(".")
        if first in NEED_KERAS:
            pytest.importorskip("keras", reason="needs the extra vidpress[train]")
        value = getattr(package, first)
        value = getattr(value, rest) if rest else value
        assert inspect.getdoc(value)
        assert value.__name__ == name.rpartition(".")[2]


def test_functions_of_plug_in_are_all_listed():
    tree = ast.parse((REPO / "model/networks/plug_in.py").read_text())
    functions = {f"plug_in.{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {name for name in functions if "._" not in name} == {
        name for name in listed_names("vidpress.model") if "." in name
    }


def test_type_checkers_see_what_is_loaded():
    """The imports that a type checker reads are those that the first use of a name makes."""
    tree = ast.parse((REPO / "model/__init__.py").read_text())
    (choice,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in choice.body for alias in node.names}
    assert seen == vars(vidpress.model)["_MODULES"]
    assert set(seen) == set(vidpress.model.__all__)


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match=r"module 'vidpress\.model' has no attribute 'Video_Dataset'"):
        getattr(vidpress.model, "Video_Dataset")  # noqa: B009


def test_without_keras_a_line_says_what_to_install():
    script = (
        "import sys\nsys.modules['keras'] = None\n"
        "import vidpress.model\n"
        "try:\n    from vidpress.model import Bottleneck\nexcept ImportError as error:\n    print(error)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "Bottleneck needs keras: pip install 'vidpress[train]'.\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_examples_import_public_names_alone(page):
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.startswith("vidpress")]
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("vidpress"):
                assert node.module in PUBLIC
                exported = set(importlib.import_module(node.module).__all__)
                assert {alias.name for alias in node.names} <= exported


def test_examples_of_the_api_page_run(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("model.safetensors")
    (tmp_path / "yt8m").mkdir()
    write_records(tmp_path / "yt8m" / "0.tfrecord", [frame_level(index) for index in range(30)])
    encode, decode = python_blocks(REPO / "docs/api.md")
    names = {"assert_that": assert_that, "equal_to": equal_to}
    exec(encode, names)
    assert Manifest.load("compact").counts.videos == 30
    check = "assert_that(batches | beam.Map(lambda batch: batch.num_columns * [batch.num_rows]), equal_to([4 * [30]]))"
    exec(f"{decode}    {check}", names)
