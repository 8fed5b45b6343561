"""The example of docs/plug-in.md does what it says."""

import re

import numpy as np
import pytest
from conftest import REPO

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")
keras = pytest.importorskip("keras", reason="needs the extra vidpress[train]")


def test_the_example_runs():
    text = (REPO / "docs" / "plug-in.md").read_text()
    keras.utils.set_random_seed(0)  # some first weights give features that are all rounded to 0
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(200, 28, 28, 1)).astype(np.float32)
    names = {"x": x, "labels": rng.integers(0, 10, 200), "x_new": x[:20]}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    np.testing.assert_array_equal(names["features"], names["z_hat"])
    assert names["z_hat"].any()
    assert len(names["codes"]) == 20
    np.testing.assert_allclose(names["predictions"], names["model"](names["x_new"]), atol=1e-4)
