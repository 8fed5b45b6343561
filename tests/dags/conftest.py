"""Runs under Airflow's own Python (`make test-airflow`), which has no vidpress; jobs run under `VIDPRESS_PYTHON`.

`AIRFLOW_HOME` is a folder of its own with a fresh SQLite database.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]

# Airflow reads its settings when it is imported.
_home = tempfile.TemporaryDirectory(prefix="airflow-")
os.environ.update(
    AIRFLOW_HOME=_home.name,
    AIRFLOW__CORE__DAGS_FOLDER=str(REPO / "dags"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    AIRFLOW_CONN_GOOGLE_CLOUD_DEFAULT="google-cloud-platform://",
)


@pytest.fixture(scope="session", autouse=True)
def database():
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True)
    yield
    _home.cleanup()


@pytest.fixture(scope="session")
def vidpress_python() -> str:
    path = os.environ.get("VIDPRESS_PYTHON")
    if path is None:
        pytest.fail("VIDPRESS_PYTHON must name a Python that has vidpress: `make test-airflow` does so.")
    return path
