"""Importing vidpress changes nothing in a process; only a command keeps its libraries quiet."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import REPO
from test_layout import FOR_TORCH, KERAS_ROOMS, MODULES, imports, room_of

from vidpress.pipeline.launching import cli
from vidpress.pipeline.launching.reporting import COMMAND_VARIABLE

IMPORT_ALL = """
import importlib, json, locale, logging, multiprocessing, os, signal, sys, threading, warnings

others, ours = json.load(sys.stdin)
for name in others:
    module, _, last = name.rpartition(".")
    __import__(module or last, fromlist=[last])


def state():
    root = logging.getLogger()
    vidpress = logging.getLogger("vidpress")
    return {
        "warnings": list(warnings.filters),
        "logging": [(log.level, list(log.filters), list(log.handlers), log.disabled) for log in (root, vidpress)],
        "environment": dict(os.environ),
        "locale": [locale.setlocale(category) for category in range(locale.LC_ALL + 1)],
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "start method": multiprocessing.get_start_method(allow_none=True),
        "threads": threading.active_count(),
    }


before = state()
for name in ours:
    importlib.import_module(name)
after = state()
print(json.dumps([what for what in before if before[what] != after[what]]))
"""


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process that no command started."""
    return {name: value for name, value in os.environ.items() if name != COMMAND_VARIABLE} | changes


def test_importing_changes_nothing():
    """What other packages do when they are imported is theirs: they come first."""
    others, ours = set(), []
    for module, path in MODULES.items():
        needed = {name for name, at_top in imports(path) if at_top and not name.startswith("vidpress")}
        packages = {name.partition(".")[0] for name in needed}
        if room_of(module) in KERAS_ROOMS or module == FOR_TORCH:
            packages.add("keras")
        if all(map(importlib.util.find_spec, packages)):
            others |= needed
            ours.append(f"vidpress.{module}".removesuffix(".__init__"))
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        input=json.dumps([sorted(others), ours]),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == []


@pytest.fixture
def noisy(tmp_path):
    """Return the environment of a process in which Beam complains while it is imported, and Google's clients warn."""
    (tmp_path / "apitools").mkdir()
    (tmp_path / "apitools" / "__init__.py").write_text(
        "import warnings\n"
        "warnings.warn('You are using a Python version (3.11.7) which Google will stop supporting', FutureWarning)\n"
        "raise ImportError('left out')\n"
    )
    return environment(PYTHONPATH=str(tmp_path))


def errors_of(environment: dict[str, str], *arguments: str) -> str:
    """Return what a Python process that succeeds writes to stderr."""
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    return result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "vidpress.pipeline.encode", "--help"],
        ["-c", "import vidpress.pipeline.launching.cli as cli; cli.main(['encode', '--help'])"],
        [str(REPO / "dataflow_templates" / "encode" / "main.py"), "--help"],
    ],
    ids=["module", "script", "template"],
)
def test_a_command_is_quiet(noisy, arguments):
    assert errors_of(noisy, *arguments) == ""


@pytest.mark.parametrize(("command", "library"), [("encode", "apache_beam"), ("train", "numba"), ("get", "numba")])
def test_a_missing_library_is_a_line_however_a_command_is_started(command, library, tmp_path):
    """The libraries are there: a finder hides them, as if vidpress had been installed without an extra."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {library!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    said = []
    for start in (["vidpress.pipeline.launching.cli", command], [f"vidpress.pipeline.{command}"]):
        path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
        result = subprocess.run(
            [sys.executable, "-m", *start, "x"], env=environment(PYTHONPATH=path), capture_output=True, text=True
        )
        assert (result.returncode, result.stdout) == (1, "")
        said.append(result.stderr)
    extras = cli.COMMANDS[command].extras
    what = f"vidpress[{extras}]" if extras else "vidpress"
    assert said == 2 * [f"vidpress {command}: error: this command needs {library}: pip install '{what}'.\n"]


def test_processes_of_a_command_are_quiet(noisy):
    assert errors_of(noisy | {COMMAND_VARIABLE: "1"}, "-c", "import vidpress.pipeline.encode") == ""


def test_a_program_that_imports_a_command_hears_all(noisy):
    heard = errors_of(noisy, "-c", "import vidpress.pipeline.encode")
    assert "You are using a Python version" in heard
    assert "apitools not found" in heard
