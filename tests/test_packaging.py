"""What a regular install holds."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import numpy as np
import pytest
from conftest import REPO
from data_sets import write_data_set
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = (
    "requirements.lock",
    "requirements-torch.lock",
    "requirements-light.lock",
    "requirements-dataflow.lock",
    "requirements-airflow.lock",
    "requirements-emulators.lock",
    "requirements-fuzz.lock",
    "requirements-build.lock",
    "requirements-tfc.lock",
)
# What stands alone needs few others; a lock of fewer lines than this lacks something.
FEWEST = {"requirements-torch.lock": 15, "requirements-emulators.lock": 5, "requirements-build.lock": 2}


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
    script = "import vidpress.model as m, vidpress.pipeline.launching.cli; print(m.VideoDataset.__module__, m.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [
        "vidpress.model.reading.video_dataset",
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
    assert "vidpress = vidpress.pipeline.launching.cli:main" in archive.read(name).decode()


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_pin_and_hash_everything_and_name_no_host(lock):
    text = (REPO / lock).read_text()
    requirements = [line for line in text.splitlines() if re.match(r"[a-zA-Z0-9]", line)]
    assert len(requirements) >= FEWEST.get(lock, 41)
    assert all("==" in line for line in requirements)
    assert text.count("--hash=sha256:") >= len(requirements)
    assert "://" not in text
    assert "--index-url" not in text


def installed_with(extras: set[str]) -> set[str]:
    """Return the distributions that `pip install vidpress[EXTRAS]` installs beside vidpress."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"]]
    wanted.append(Requirement(f"vidpress[{','.join(extras)}]" if extras else "vidpress"))
    seen, names = set(), set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        new = {(name, extra) for extra in (*requirement.extras, "")} - seen
        seen |= new
        for _, extra in new:
            if name == "vidpress":
                wanted += [Requirement(line) for line in project["optional-dependencies"].get(extra, [])]
                continue
            names.add(name)
            lines = importlib.metadata.distribution(name).requires or []
            needed = [Requirement(line) for line in lines]
            wanted += [each for each in needed if each.marker is None or each.marker.evaluate({"extra": extra})]
    return names


def test_light_lock_has_what_the_jobs_need_and_no_tensorflow():
    locked = set(re.findall(r"^([a-zA-Z0-9-]+)==", (REPO / "requirements-light.lock").read_text(), re.MULTILINE))
    assert installed_with({"beam"}) <= locked
    assert not {name for name in locked if "tensorflow" in name}


def test_what_reads_data_sets_is_little():
    alone = {"llvmlite", "msgspec", "numba", "numpy", "pyarrow", "safetensors", "threadpoolctl"}
    assert installed_with(set()) == alone
    assert "google-cloud-storage" in installed_with({"read"})
    assert not {"apache-beam", "awscrt", "isal", "tqdm"} & installed_with({"read"})
    assert {"apache-beam", "awscrt", "isal", "tqdm", *installed_with({"read"})} <= installed_with({"beam"})


# A process in which some packages cannot be imported reads a data set in every way, and asks for more.
READ_ALONE = """
import contextlib, io, json, sys

others, model, shard = json.load(sys.stdin)


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())

import numpy as np
from vidpress.model import FeatureCodec, FrozenModel, VideoDataset
from vidpress.pipeline.launching import cli

batches = list(VideoDataset("compact", batch_size=64, shuffle=True, num_classes=3862))
dataset = VideoDataset("compact")
some = dataset.get(batches[0].ids[:3])
assert (some.features == batches[0].features[:3]).all()
z_hat = np.concatenate([batch.features for batch in batches]).astype(np.int32)
codec = FeatureCodec.fit(z_hat)
assert (codec.decompress(codec.compress(z_hat)) == z_hat).all()
assert FrozenModel.load(model).tables.num_dims == dataset.num_dims
for arguments in (["get", "compact", batches[0].ids[0].decode()], ["get", "compact", *map(bytes.decode, some.ids),
                  "--output", "some.parquet"], ["verify", "compact"], ["inspect", "compact"], ["inspect", shard],
                  ["inspect", model]):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        cli.main(arguments)
    assert said.getvalue(), arguments


def refused(function):
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            function()
    except SystemExit:
        return said.getvalue()
    except Exception as error:
        return str(error)


ids = [video_id.decode() for batch in batches for video_id in batch.ids]
print(json.dumps([ids, z_hat.tolist(), [
    refused(lambda: cli.main(["encode", "--input", "x", "--model", model, "--output", "y"])),
    refused(lambda: cli.main(["decode", "--help"])),
    refused(lambda: cli.main(["train", "--help"])),
    refused(lambda: cli.main(["demo"])),
    refused(lambda: __import__("vidpress.transforms")),
    refused(lambda: __import__("vidpress.model", fromlist=["Bottleneck"]).Bottleneck),
    refused(lambda: VideoDataset("gs://bucket")),
]]))
"""


@pytest.mark.parametrize("extras", [set(), {"read"}], ids=["alone", "read"])
def test_a_data_set_is_read_without_beam(extras, model, model_path, tmp_path):
    rows, z_hat = write_data_set(tmp_path, model, 600, num_shards=2)
    (tmp_path / "compact").mkdir()
    for path in (*tmp_path.glob("shard-*"), *tmp_path.glob("manifest*")):
        path.rename(tmp_path / "compact" / path.name)
    shard = str(next((tmp_path / "compact").glob("shard-*")))
    names = installed_with(extras) | {"vidpress"}
    others = [
        package
        for package, distributions in importlib.metadata.packages_distributions().items()
        if not names & {canonicalize_name(name) for name in distributions}
    ]
    result = subprocess.run(
        [sys.executable, "-c", READ_ALONE],
        input=json.dumps([others, model_path, shard]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    ids, read, refused = json.loads(result.stdout)
    place = {video_id.decode(): index for index, video_id in enumerate(rows["id"].to_pylist())}
    assert sorted(ids) == sorted(place)
    np.testing.assert_array_equal(read, z_hat[[place[video_id] for video_id in ids]])
    *others, gs = refused
    assert others == [
        "vidpress encode: error: this command needs apache_beam: pip install 'vidpress[beam]'.\n",
        "vidpress decode: error: this command needs apache_beam: pip install 'vidpress[beam]'.\n",
        "vidpress train: error: this command needs tqdm: pip install 'vidpress[train]'.\n",
        "vidpress demo: error: this command needs isal: pip install 'vidpress[beam,train]'.\n",
        "vidpress.transforms needs apache_beam: pip install 'vidpress[beam]'.",
        "Bottleneck needs keras: pip install 'vidpress[train]'.",
    ]
    missing = "gs://bucket needs google-cloud-storage: pip install 'vidpress[read]'."
    assert gs == (missing if not extras else "gs://bucket/ is no object of Cloud Storage: gs://BUCKET/NAME is.")


def versions(lock: str) -> dict[str, set[str]]:
    found = {}
    for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", (REPO / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_locks_have_the_same_version_of_a_package():
    everywhere = {}
    for lock in LOCKS:
        if lock != "requirements-tfc.lock":
            for name, found in versions(lock).items():
                assert everywhere.setdefault(name, found) == found, f"{lock}: {name}"


def test_readme_has_the_versions_of_the_locks():
    names, _, row = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.*\|$", (REPO / "README.md").read_text().split("are tested")[1], re.MULTILINE)[:3]
    )
    locked = versions("requirements.lock") | versions("requirements-torch.lock")
    packages = {"Beam": "apache-beam", "PyTorch": "torch"}
    pythons, *others = zip(names, row, strict=True)
    assert dict(others) == {name: "".join(locked[packages.get(name, name.lower())]) for name, _ in others}
    classifiers = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["classifiers"]
    assert pythons == ("Python", ", ".join(re.findall(r"Python :: (\d\.\d+)", "\n".join(classifiers))))


def test_a_wheel_is_built_without_tensorflow():
    """Neither does the environment need it that holds what a worker has."""
    for target in ("build/wheel/.ready", f".venv-light/{sys.version_info[0]}.{sys.version_info[1]}/.ready"):
        plan = subprocess.run(
            ["make", "--always-make", "--dry-run", target, f"PYTHON={sys.executable}"],
            cwd=REPO,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "-r requirements-build.lock" in plan
        assert "-r requirements.lock" not in plan


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile, and what `make install` looks at first."""
    (tmp_path / "Makefile").write_text((REPO / "Makefile").read_text())
    for name in ("requirements.lock", "requirements-build.lock", "pyproject.toml", "setup.py"):
        (tmp_path / name).write_text("")
    return tmp_path


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make(checkout, *arguments, **environment):
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "PYTHON", "PYENV"))
    }
    return subprocess.run(
        ["make", "-s", *arguments],
        cwd=checkout,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("fake", ["exit 1", "echo 3.14"])
def test_make_refuses_another_python(checkout, fake):
    result = make(checkout, "install", f"PYTHON={program(checkout / 'python3.9', fake)}")
    assert result.returncode != 0
    message, *_ = result.stderr.splitlines()
    assert message == (
        "vidpress needs Python 3.11, 3.12 or 3.13: install one, or name it with 'make PYTHON=/path/to/python3.13'."
    )
    assert not (checkout / ".venv").exists()


def test_make_takes_the_newest_python_that_runs(checkout):
    """What pyenv puts into the path for a version that is not chosen fails, but the version itself may be there."""
    folder = checkout / "bin"
    path = f"{folder}:{os.environ['PATH']}"
    home = {"HOME": str(checkout), "PYENV_ROOT": str(checkout / "pyenv")}
    for version in ("3.11", "3.12", "3.13"):
        program(folder / f"python{version}", "exit 127")
    assert make(checkout, "pythons", PATH=path, **home).stdout.split() == []
    runs = 'case "$2" in *print*) echo {0};; *\\"{0}\\"*) ;; *) exit 1;; esac'
    program(checkout / "pyenv/versions/3.12.1/bin/python", runs.format("3.12"))
    program(folder / "python3.11", runs.format("3.11"))
    assert make(checkout, "pythons", PATH=path, **home).stdout.split() == ["3.12", "3.11"]
    assert "versions/3.12.1/bin/python" in make(checkout, "--dry-run", "install", PATH=path, **home).stdout
