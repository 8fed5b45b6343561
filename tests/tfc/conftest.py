"""Runs under tensorflow-compression's own Python (`make test-tfc`), which has vidpress, but no Keras 3.

What needs Keras 3 (`ours.py`) runs under `VIDPRESS_PYTHON`, and the two exchange arrays.
"""

import os
import pathlib
import subprocess
import sys

import hypothesis
import numpy as np
import pytest

HERE = pathlib.Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))  # the helpers that other tests have too

# No test asserts a time, Hypothesis' deadline included.
hypothesis.settings.register_profile("vidpress", deadline=None)
hypothesis.settings.load_profile("vidpress")


@pytest.fixture(scope="session")
def vidpress_python() -> str:
    path = os.environ.get("VIDPRESS_PYTHON")
    if path is None:
        pytest.fail("VIDPRESS_PYTHON must name a Python that has vidpress and Keras 3: `make test-tfc` does so.")
    return path


@pytest.fixture(scope="session")
def run_ours(vidpress_python, tmp_path_factory):
    """Run `ours.py` on cases {name: {what: array}} with a backend of Keras; return results of the same form."""

    def run(cases: dict, backend: str) -> dict:
        if subprocess.run([vidpress_python, "-c", f"import {backend}"], capture_output=True).returncode:
            pytest.skip(f"VIDPRESS_PYTHON has no {backend}")
        folder = tmp_path_factory.mktemp("ours")
        np.savez(
            folder / "in.npz",
            **{f"{name}/{what}": array for name, case in cases.items() for what, array in case.items()},
        )
        subprocess.run(
            [vidpress_python, str(HERE / "ours.py"), str(folder / "in.npz"), str(folder / "out.npz")],
            env={**os.environ, "KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1"},
            check=True,
        )
        results: dict = {name: {} for name in cases}
        with np.load(folder / "out.npz") as arrays:
            for key in arrays.files:
                name, _, what = key.partition("/")
                results[name][what] = arrays[key]
        return results

    return run
