"""Fuzz the parsers with Atheris, guided by what of them was run: `make fuzz`.

Each target runs in a process of its own, which stops at its first finding: an exception that is none of the parser's,
20 seconds for one file, or 2 GB of memory. The file that did it stays in the folder, and

    .venv-fuzz/bin/python tests/fuzz/run.py shard --file build/fuzz/shard-crash-...

shows it again. What was found interesting is kept in the folder's corpus, where the next run goes on. Arrow's own bad
files are worth a run of `shard`: `--files` takes the folder data/parquet/fuzzing of github.com/apache/arrow-testing, or
bad_data of github.com/apache/parquet-testing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator

NAMES = ("tfrecord", "shard", "tables", "model", "manifest")

_MAX_FILE_BYTES = 2**16
_PLAIN_SHARE = 0.2


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; all unless some are named"
    )
    parser.add_argument("--seconds", type=int, default=120, help="for each target")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("build/fuzz"), help="corpus and findings")
    parser.add_argument("--files", type=pathlib.Path, help="a folder of files to begin with, beside the golden ones")
    parser.add_argument("--file", type=pathlib.Path, help="run one target with this file only")
    parser.add_argument("--fuzz", action="store_true", help="run one target in this process")
    arguments = parser.parse_args()
    arguments.targets = arguments.targets or list(NAMES)
    if unknown := set(arguments.targets) - set(NAMES):
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    return arguments


def _fuzz(name: str, arguments: argparse.Namespace) -> None:
    """Run one target; this does not return."""
    import atheris

    with atheris.instrument_imports(include=["vidpress"], exclude=list(_compiled_modules())):
        from targets import TARGETS
    target = TARGETS[name]

    def change(data: bytes, max_size: int) -> bytes:
        return atheris.Mutate(data[: max(max_size, 1)], max(max_size, 1))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() >= _PLAIN_SHARE:
            try:
                mutated = target.mutate(data, rng, change, max_size)
            except Exception:  # it is too damaged to be taken apart
                mutated = b""
            if 0 < len(mutated) <= max_size:
                return mutated
        return change(data, max_size)

    corpus = arguments.folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    more = [path.read_bytes() for path in sorted(arguments.files.iterdir())] if arguments.files else []
    for seed in [*target.seeds(), *more]:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    options = [
        f"-artifact_prefix={arguments.folder / name}-",
        f"-max_total_time={arguments.seconds}",
        f"-max_len={_MAX_FILE_BYTES}",
        "-len_control=0",
        "-rss_limit_mb=2048",
        "-timeout=20",
        "-print_final_stats=1",
    ]
    inputs = [str(corpus)] if arguments.file is None else [str(arguments.file)]
    atheris.Setup([sys.argv[0], *options, *inputs], target.run, custom_mutator=mutate)
    atheris.Fuzz()


def _compiled_modules() -> Iterator[str]:
    """Yield the modules that Numba compiles: it cannot where branches are counted."""
    spec = importlib.util.find_spec("vidpress")
    for folder in spec.submodule_search_locations if spec and spec.submodule_search_locations else ():
        for path in pathlib.Path(folder, "model").rglob("*.py"):
            if "numba" in (source := path.read_text()) or "import jit" in source:
                yield ".".join(("vidpress", *path.relative_to(folder).with_suffix("").parts))


def main() -> None:
    """Run the targets, one after the other, and fail if one found something."""
    arguments = _arguments()
    if arguments.fuzz or arguments.file:
        _fuzz(arguments.targets[0], arguments)
    # Compiled beforehand: while it is, the first file would be taken for one that hangs.
    subprocess.run([sys.executable, "-m", "vidpress.model.warm_up"], check=True)
    findings = []
    for name in arguments.targets:
        print(f"--- {name}, {arguments.seconds} s", flush=True)
        command = [sys.executable, __file__, name, "--fuzz", "--seconds", str(arguments.seconds)]
        command += ["--folder", str(arguments.folder), *(["--files", str(arguments.files)] if arguments.files else [])]
        if subprocess.run(command, check=False).returncode:
            findings.append(name)
    if findings:
        sys.exit(f"Found something in {', '.join(findings)}: see {arguments.folder}, and tests/fuzz/run.py --help.")


if __name__ == "__main__":
    main()
