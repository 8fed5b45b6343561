"""What a regular install holds."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import REPO

LOCKS = (
    "requirements.lock",
    "requirements-light.lock",
    "requirements-dataflow.lock",
    "requirements-airflow.lock",
    "requirements-emulators.lock",
    "requirements-fuzz.lock",
    "requirements-build.lock",
)
# What stands alone needs few others; a lock of fewer lines than this lacks something.
FEWEST = {"requirements-emulators.lock": 5, "requirements-build.lock": 1}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        if name.startswith(("package/", "model/", "transforms/", "pipeline/")) or "/" not in name:
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((REPO / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True)
    (path,) = folder.glob("vidpress-*.whl")
    return path


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    sources = {"vidpress/__init__.py"} | {
        f"vidpress/{path.relative_to(REPO)}"
        for folder in ("model", "transforms", "pipeline")
        for path in (REPO / folder).rglob("*.py")
    }
    assert set(names) == sources


def test_wheel_is_imported_from_another_folder(wheel, tmp_path):
    """A folder `model` of the user's own does not shadow ours."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = "import vidpress.model as m, vidpress.pipeline.cli; print(m.VideoDataset.__module__, m.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [
        "vidpress.model.data_set.video_dataset",
        str(tmp_path / "site/vidpress/model/__init__.py"),
    ]


def test_version_is_known_without_the_libraries(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = "import sys, vidpress; print(vidpress.__version__, vidpress.__file__, *sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    version, file, *modules = result.stdout.split()
    assert version == tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
    assert file == str(tmp_path / "site/vidpress/__init__.py")
    assert not {"numpy", "apache_beam", "pyarrow", "vidpress.model"} & set(modules)


def test_wheel_has_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "vidpress = vidpress.pipeline.cli:main" in archive.read(name).decode()


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_pin_and_hash_everything_and_name_no_host(lock):
    text = (REPO / lock).read_text()
    requirements = [line for line in text.splitlines() if re.match(r"[a-zA-Z0-9]", line)]
    assert len(requirements) >= FEWEST.get(lock, 41)
    assert all("==" in line for line in requirements)
    assert text.count("--hash=sha256:") >= len(requirements)
    assert "://" not in text
    assert "--index-url" not in text


def test_light_lock_has_what_the_project_needs_and_no_tensorflow():
    dependencies = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = {re.match(r"[a-zA-Z0-9-]+", dependency).group() for dependency in dependencies}
    locked = set(re.findall(r"^([a-zA-Z0-9-]+)==", (REPO / "requirements-light.lock").read_text(), re.MULTILINE))
    assert needed <= locked
    assert not {name for name in locked if "tensorflow" in name}


def test_a_wheel_is_built_without_tensorflow():
    """Neither does the environment need it that holds what a worker has."""
    light = f".venv-light/{sys.version_info.major}.{sys.version_info.minor}/.ready"
    for target in ("build/wheel/.ready", light):
        plan = subprocess.run(
            ["make", "--always-make", "--dry-run", target], cwd=REPO, capture_output=True, text=True, check=True
        ).stdout
        assert "-r requirements-build.lock" in plan
        assert "-r requirements.lock" not in plan


def test_make_refuses_another_python(tmp_path):
    fake = tmp_path / "python3.9"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    (tmp_path / "Makefile").write_text((REPO / "Makefile").read_text())
    for name in ("requirements.lock", "requirements-build.lock", "pyproject.toml", "setup.py"):
        (tmp_path / name).write_text("")
    result = subprocess.run(
        ["make", "-s", "install", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "vidpress needs Python 3.11, 3.12 or 3.13: install one" in result.stderr
    assert not (tmp_path / ".venv").exists()
