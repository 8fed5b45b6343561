"""Bring Flink, Beam's Flink job server and Prism into a folder: `python tests/engines/fetch.py FOLDER`.

What cannot be had leaves the reason in `FOLDER/NAME.missing`, which the tests print when they skip. A file that is not
what was pinned is an error.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tarfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent

MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JOB_SERVER = "org.apache.beam.runners.flink.FlinkJobServerDriver"
PRISM = "github.com/apache/beam/sdks/v2/go/cmd/prism"

# A registry that does not answer must not hold up a build.
_TIMEOUT_SECONDS = 1800


class MissingError(Exception):
    """Something could not be fetched; the message says why."""


def fetch_flink(folder: pathlib.Path) -> None:
    """Download the distribution's jars; pip checks the archive against the hash in the lock file."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    lock = str(HERE / "requirements-flink.lock")
    _run([*pip, "--no-build-isolation", "--require-hashes", "--dest", str(folder), "-r", lock])
    (archive,) = folder.glob("apache*flink*libraries-*.tar.gz")
    lib = folder / "lib"
    lib.mkdir(exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            name = pathlib.PurePosixPath(member.name)
            # The table API is not needed, and is most of it.
            if name.match("*/deps/lib/*.jar") and name.name.startswith(("flink-dist", "log4j")):
                member.name = name.name
                tar.extract(member, lib, filter="data")
    archive.unlink()


def fetch_job_server(folder: pathlib.Path) -> None:
    """Download the jars of `flink/pom.xml`, and fail where one differs from the checksum that the registry states.

    A jar without classes ties them together, as `--flink_job_server_jar` wants one.
    """
    target = [f"-DoutputDirectory={folder / 'lib'}", "-DincludeScope=runtime"]
    maven = ["mvn", "--batch-mode", "--quiet", "-Dstyle.color=never", "--strict-checksums"]
    _run([*maven, "--file", str(HERE / "flink" / "pom.xml"), MAVEN_COPY, *target])
    class_path = " ".join(f"lib/{jar.name}" for jar in sorted((folder / "lib").glob("*.jar")))
    manifest = "Manifest-Version: 1.0\n"
    for line in (f"Main-Class: {JOB_SERVER}", f"Class-Path: {class_path}"):
        manifest += "\n ".join(line[start : start + 70] for start in range(0, len(line), 70)) + "\n"
    with zipfile.ZipFile(folder / "job-server.jar", "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", manifest)


def fetch_prism(folder: pathlib.Path) -> None:
    """Build it; Go checks every module against go.sum."""
    _run(["go", "build", "-C", str(HERE / "prism"), "-mod=readonly", "-trimpath", "-o", str(folder / "prism"), PRISM])


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    except FileNotFoundError as error:
        raise MissingError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"{command[0]} did not finish within {_TIMEOUT_SECONDS} s") from error
    if result.returncode:
        output = (result.stderr + result.stdout).strip()
        if any(sign in output for sign in ("DO NOT MATCH THE HASHES", "SECURITY ERROR", "Checksum validation failed")):
            raise SystemExit(f"What {command[0]} brought is not what was pinned:\n{output}")
        errors = [line for line in output.splitlines() if "error" in line.lower() or "403" in line or "404" in line]
        raise MissingError(f"{command[0]}: {(errors or output.splitlines() or ['no output'])[0][:500]}")


def main(folder: pathlib.Path) -> None:
    """Fetch what is not there yet, and say of each what came of it."""
    for name, fetch in (("flink", fetch_flink), ("flink-job-server", fetch_job_server), ("prism", fetch_prism)):
        ready = folder / name / ".ready"
        missing = folder / f"{name}.missing"
        missing.unlink(missing_ok=True)
        if not ready.exists():
            ready.parent.mkdir(parents=True, exist_ok=True)
            try:
                fetch(ready.parent)
            except MissingError as error:
                missing.write_text(f"{error}\n")
                print(f"{name}: cannot be fetched, its tests will be skipped: {error}")
                continue
            ready.touch()
        print(f"{name}: ready")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
