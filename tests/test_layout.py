"""The direction of imports, and what is imported where."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import REPO

from vidpress.pipeline.launching import cli

# What each room imports beside itself: a line a room, in the order of ARCHITECTURE.md, and only what stands above it. A
# module with a line of its own is none of its room's.
MAY_IMPORT = {
    "model": "",
    "model.files": "model",
    "model.tables": "model",
    "model.coding": "model model.tables",
    "model.records": "model model.files",
    "model.frozen": "model model.files model.tables model.coding",
    "model.shards": "model model.files model.tables model.coding",
    "model.data_set": "model model.files model.coding model.records model.frozen model.shards",
    "model.reading": "model model.files model.tables model.frozen model.shards model.data_set",
    "model.networks": "model model.tables model.coding model.frozen",
    "model.training": "model model.files model.tables model.coding model.records model.frozen model.networks",
    "model.images": "model model.files model.records model.networks model.training",
    "model.__init__": "model model.tables model.coding model.records model.frozen model.shards model.data_set"
    " model.reading model.networks",
    "model.warm_up": "model model.tables model.coding model.records model.frozen model.shards model.data_set",
    "transforms.generations": "model model.files model.data_set",
    "transforms": "model model.files model.records model.frozen model.shards model.data_set transforms.generations",
    "transforms.compaction": "model.shards model.data_set transforms transforms.generations",
    "pipeline.launching": "model model.files model.data_set",
    "pipeline.running": "model transforms pipeline.launching",
    "pipeline.training": "model model.files model.frozen model.training pipeline.launching",
    "pipeline.evaluation.rivals": "model model.tables model.coding",
    "pipeline.evaluation": "model model.files model.tables model.frozen model.networks model.training model.images"
    " pipeline.launching pipeline.training pipeline.evaluation.rivals",
    "pipeline.evaluation.videos": "model model.tables model.records model.frozen model.shards model.data_set"
    " model.training pipeline.launching pipeline.training pipeline.evaluation.rivals pipeline.evaluation",
    "pipeline.evaluation.report": "model.files pipeline.evaluation.rivals pipeline.evaluation",
    "pipeline.demonstration": "model model.files model.frozen model.shards model.data_set model.reading model.training"
    " pipeline.evaluation.rivals pipeline.evaluation.videos",
    "pipeline": "model model.files model.tables model.records model.frozen model.shards model.data_set model.reading"
    " model.networks model.training model.images transforms transforms.generations"
    " transforms.compaction pipeline.launching pipeline.running pipeline.training pipeline.evaluation.rivals"
    " pipeline.evaluation pipeline.evaluation.videos pipeline.evaluation.report pipeline.demonstration",
}
KERAS_ROOMS = {"model.networks", "model.training", "model.images"}
BACKENDS = {"tensorflow", "jax", "torch"}
BEFORE_KERAS_3 = {"tf_keras", "tensorflow_compression", "tensorflow_probability"}
KERAS = {"keras", *BACKENDS, *BEFORE_KERAS_3}
FOR_TORCH = "model.reading.torch_dataset"  # a torch.utils.data.Dataset
MOST_FILES = 10
MOST_LINES = 400

MODULES = {
    ".".join(path.relative_to(REPO).with_suffix("").parts): path
    for folder in ("model", "transforms", "pipeline")
    for path in sorted((REPO / folder).rglob("*.py"))
}


def room_of(module: str) -> str:
    """Return a module's line in the table: its own, if it has one, or its folder's."""
    return module if module in MAY_IMPORT else module.rpartition(".")[0]


def imports(path: pathlib.Path) -> list[tuple[str, bool]]:
    """Imported module names, and whether the import stands at the top level and not for a type checker alone."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in tree.body) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", node in tree.body) for alias in node.names]
    return found


def imported_rooms(module: str) -> set[str]:
    """Return the rooms other than its own from which a module of vidpress imports."""
    rooms = set()
    for name, _ in imports(MODULES[module]):
        if name.startswith("vidpress."):
            name = name.removeprefix("vidpress.")
            parent = name.rpartition(".")[0]
            if name not in MODULES:  # a name that a module or a room gives
                name = parent if parent in MODULES else f"{parent or name}.__init__"
            if name in MODULES:  # not vidpress.__version__
                rooms.add(room_of(name))
    return rooms - {room_of(module)}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    assert imported_rooms(module) <= set(MAY_IMPORT[room_of(module)].split())


def test_table_of_rooms_allows_no_more_than_there_is_and_no_circle():
    found = {room: set() for room in MAY_IMPORT}
    for module in MODULES:
        found[room_of(module)] |= imported_rooms(module)
    assert found == {room: set(others.split()) for room, others in MAY_IMPORT.items()}
    rooms = list(MAY_IMPORT)
    assert all(rooms.index(other) < rooms.index(room) for room in rooms for other in MAY_IMPORT[room].split())


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("model.")])
def test_model_knows_no_beam(module):
    assert "apache_beam" not in {name.split(".")[0] for name, _ in imports(MODULES[module])}


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) not in KERAS_ROOMS])
def test_keras_is_imported_by_training_alone(module):
    found = KERAS & {name.split(".")[0] for name, at_top in imports(MODULES[module]) if at_top}
    assert found == ({"torch"} if module == FOR_TORCH else set())


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in KERAS_ROOMS])
def test_training_runs_on_any_backend(module):
    """A backend is imported where it is the one that Keras runs on, and nothing of those that came before Keras 3."""
    assert not BACKENDS & {name.split(".")[0] for name, at_top in imports(MODULES[module]) if at_top}
    everything = {name.split(".")[0] for name, _ in imports(MODULES[module])}
    assert not BEFORE_KERAS_3 & everything


@pytest.mark.parametrize("module", MODULES)
def test_numbas_inside_is_used_in_one_place(module):
    """Its undocumented modules change with any version; `numba_internals` says what vidpress takes of them."""
    private = [name for name, _ in imports(MODULES[module]) if name.startswith("numba.core")]
    assert module == "model.numba_internals" or not private


def folders() -> list[pathlib.Path]:
    return sorted({path.parent for path in MODULES.values()})


@pytest.mark.parametrize("folder", folders(), ids=lambda path: str(path.relative_to(REPO)))
def test_a_folder_is_seen_at_a_glance(folder):
    names = [path.stem for path in folder.glob("*.py")]
    assert "__init__" in names  # else it would be missing in a wheel
    assert len(names) - 1 <= MOST_FILES
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_read_in_one_sitting(module):
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES


def test_architecture_names_every_module():
    """A row of its table of rooms has a floor, a room, and the modules that are in it."""
    rows = [line.split(" | ") for line in (REPO / "ARCHITECTURE.md").read_text().splitlines()]
    rooms = {
        row[1].strip("`/"): set(re.findall(r"`(\w+)`", row[2]))
        for row in rows
        if len(row) == 3 and row[0][2:].isdigit()
    }
    names = {str(folder.relative_to(REPO)): {path.stem for path in folder.glob("*.py")} for folder in folders()}
    assert rooms == {room: modules - {"__init__"} for room, modules in names.items()}


def loaded_by(*modules: str) -> set[str]:
    script = f"import sys, {', '.join(modules)}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", script], cwd=REPO.parent, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_what_encodes_and_decodes_loads_no_keras():
    commands = ("vidpress.pipeline.encode", "vidpress.pipeline.decode", "vidpress.pipeline.inspect")
    loaded = loaded_by("vidpress.transforms", *commands)
    assert "apache_beam" in loaded
    assert not {name for name in loaded if "tensorflow" in name} | KERAS & loaded


def test_commands_that_run_no_beam_job_load_no_beam():
    """It takes seconds."""
    commands = ("train", "freeze", "evaluate", "inspect", "verify", "get")
    assert "apache_beam" not in loaded_by(*(f"vidpress.pipeline.{command}" for command in commands))


def test_the_public_names_are_loaded_when_they_are_used():
    assert not {"numpy", "pyarrow", "numba", "apache_beam", *KERAS} & loaded_by("vidpress.model")


@pytest.mark.parametrize("command", [*cli.COMMANDS, "launching/cli"])
def test_commands_run_as_modules(command):
    """`python -m vidpress.pipeline.NAME` that did nothing would end with 0."""
    assert 'if __name__ == "__main__":\n    main()\n' in (REPO / "pipeline" / f"{command}.py").read_text()
