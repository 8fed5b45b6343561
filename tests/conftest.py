"""Fixtures.

`data_dir`: the real data, or a skip; `VIDPRESS_DATA` or `../shared/data` beside the checkout.
"""

import os
import pathlib

import pytest

REPO = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    path = pathlib.Path(os.environ.get("VIDPRESS_DATA", REPO.parent / "shared" / "data"))
    if not (path / "yt8m_v2_video").is_dir():
        pytest.skip(f"needs the real YouTube-8M data: no {path}/yt8m_v2_video (name it with VIDPRESS_DATA)")
    return path
