"""The direction of imports, and what is imported where."""

import ast
import pathlib
import subprocess
import sys

import pytest
from conftest import REPO

from vidpress.pipeline import cli

MAY_IMPORT = {
    "model": {"model"},
    "transforms": {"model", "transforms"},
    "pipeline": {"model", "transforms", "pipeline"},
}
TENSORFLOW = {
    *(
        "bottleneck",
        "checkpoints",
        "networks",
        "training_data",
        "many_rates",
        "teacher",
        "training",
        "freezing",
        "task_heads",
    ),
    *("image_networks", "image_batches", "image_training", "plug_in"),
}
MODULES = [path for folder in MAY_IMPORT for path in sorted((REPO / folder).rglob("*.py"))]


def imports(path: pathlib.Path) -> list[tuple[str, bool]]:
    """Imported module names, and whether the import stands at the top level."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and ast.unparse(test.test) == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names if id(node) not in guarded]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module or "", node in tree.body)] if id(node) not in guarded else []
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPO)))
def test_imports_go_one_way(path):
    folder = path.relative_to(REPO).parts[0]
    for name, _ in imports(path):
        parts = name.split(".")
        if parts[0] == "vidpress" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[folder], f"{path.name} imports {name}"
        if folder == "model":
            assert parts[0] != "apache_beam", f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPO)))
def test_tensorflow_is_imported_by_training_alone(path):
    if path.parent.name == "model" and path.stem in TENSORFLOW:
        return
    top_level = {name.split(".")[0] for name, at_top in imports(path) if at_top}
    assert not top_level & {"tensorflow", "tensorflow_compression", "tensorflow_probability", "keras"}


def loaded_by(*modules: str) -> set[str]:
    script = f"import sys, {', '.join(modules)}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPO.parent, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_what_encodes_and_decodes_loads_no_tensorflow():
    loaded = loaded_by("vidpress.pipeline.encode", "vidpress.pipeline.decode", "vidpress.pipeline.inspect")
    assert not {name for name in loaded if "tensorflow" in name or name == "keras"}


@pytest.mark.parametrize("command", [*cli.COMMANDS, "cli"])
def test_commands_run_as_modules(command):
    """`python -m vidpress.pipeline.NAME` that did nothing would end with 0."""
    assert 'if __name__ == "__main__":\n    main()\n' in (REPO / "pipeline" / f"{command}.py").read_text()
