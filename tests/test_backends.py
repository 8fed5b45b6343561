"""JAX and PyTorch train, freeze and encode as TensorFlow does, each in a process that loads it alone."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import random_model
from test_image_files import write_mnist

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

import backend_checks
from backend_checks import KINDS, OPTIONS, SPEC

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.records.synthetic import write_shards
from vidpress.model.training import loop

# What a sum may differ by, added up in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def checked(backend, folder):
    """Let a process make its checks on a backend, and return what it found."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "OMP_NUM_THREADS": "2",  # with one, the convolutions of PyTorch 2.15 write beyond their memory
        # What was compiled for a training is taken for the one that goes on with it.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    result = subprocess.run(
        [sys.executable, backend_checks.__file__, str(folder)], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "found.json").read_text()), dict(np.load(folder / "found.npz"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A folder of data, and of a training that TensorFlow began."""
    folder = tmp_path_factory.mktemp("begun")
    write_shards(folder / "data", 2, 1500, spec=SPEC, num_classes=backend_checks.CLASSES, frames=(2, 4))
    (folder / "mnist").mkdir()
    write_mnist(folder / "mnist")
    training, _ = backend_checks.data_in(folder)
    options = dataclasses.replace(OPTIONS, prior_banks=4)
    loop.train(options, SPEC, training, str(folder / "of tensorflow"))
    random_model(SPEC, num_classes=backend_checks.CLASSES).save(folder / "teacher.safetensors")
    return folder


@pytest.fixture(scope="module")
def on_tensorflow(begun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow")
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    return checked("tensorflow", folder)


@pytest.fixture(scope="module", params=["jax", "torch"])
def on_another(request, begun, tmp_path_factory):
    """A backend, the folder that its process was given, and what it found."""
    pytest.importorskip(request.param, reason=f"needs the extra vidpress[{request.param}]")
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    return request.param, folder, *checked(request.param, folder)


def test_tensorflow_is_loaded_where_it_is_the_backend_alone(on_another, on_tensorflow):
    backend, _, found, _ = on_another
    assert (found["backend"], found["loads tensorflow"]) == (backend, False)
    assert (on_tensorflow[0]["backend"], on_tensorflow[0]["loads tensorflow"]) == ("tensorflow", True)


def test_layers_give_the_same(on_another, on_tensorflow):
    arrays, expected = on_another[3], on_tensorflow[1]
    for name in ("noise", "prior_offset"):
        np.testing.assert_array_equal(arrays[name], expected[name])
    for name in ("log_prob", "losses", "tilt", "tilt_of_many"):
        assert np.ptp(expected[name]) > 0
        np.testing.assert_allclose(arrays[name], expected[name], **ROUNDING, err_msg=name)
    # A probability at a tie may be rounded the other way.
    assert arrays["prior_cdf"].shape == expected["prior_cdf"].shape
    assert np.abs(arrays["prior_cdf"] - expected["prior_cdf"]).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_stopped_and_goes_on_ends_with_the_same_bits(on_another, kind):
    found = on_another[2]
    assert found[f"{kind}: moved"]
    assert found[f"{kind}: the same bits"]
    assert found[f"{kind}: banks differ"]


def test_a_training_of_tensorflow_is_taken_over(on_another, on_tensorflow):
    _, _, found, arrays = on_another
    np.testing.assert_allclose(arrays["taken_over_logits"], on_tensorflow[1]["taken_over_logits"], **ROUNDING)
    assert found["frozen"] == on_tensorflow[0]["frozen"]  # to the last byte
    names = [name for name in arrays if name.startswith("gone_on")]
    assert len(names) > 12
    for name in names:
        np.testing.assert_allclose(arrays[name], on_tensorflow[1][name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_training_is_taken_over_by_tensorflow(on_another):
    """It is read, and gone on with."""
    _, folder, _, _ = on_another
    training, _ = backend_checks.data_in(folder)
    for kind, changes in KINDS.items():
        options = dataclasses.replace(OPTIONS, steps=OPTIONS.steps + 1, **changes)
        trained = loop.load_trained(str(folder / f"through {kind}"))
        assert trained.options.steps == OPTIONS.steps
        teachers = backend_checks.teachers_of(kind, folder)
        network = loop.train(options, SPEC, training, str(folder / f"through {kind}"), teachers=teachers)
        assert all(np.isfinite(weight).all() for weight in network.get_weights())
        assert backend_checks.bits_of(network) != backend_checks.bits_of(trained.network)


def test_gap_and_bytes_are_those_of_tensorflow(on_another, on_tensorflow):
    found, expected = on_another[2], on_tensorflow[0]
    assert expected["gap"] > 0.8
    for name in ("gap", "frozen gap", "head's gap"):
        assert found[name] == pytest.approx(expected[name], abs=0.005), name
    assert found["bytes"] == pytest.approx(expected["bytes"], rel=0.05)


def test_any_model_of_keras_learns_and_is_coded(on_another):
    found = on_another[2]
    assert found["fit learns"]
    assert found["bits of its codes"] == pytest.approx(found["bits of the prior"], rel=0.05, abs=12)


def test_a_network_for_images_is_trained(on_another):
    found = on_another[2]
    assert found["image logits are finite"]
    assert found["images: the same bits"]


def test_the_commands_run(on_another):
    _, folder, found, _ = on_another
    assert "Trained to step 20" in found["train"]
    assert "Frozen at lmbda 0.008 and step 20" in found["freeze"]
    models = [FrozenModel.load(folder / f"{name}.safetensors") for name in ("command", "anew")]
    assert [model.model_id for model in models] == found["models"]
    assert [(model.metadata["lmbda"], model.tables.num_banks) for model in models] == [(0.005, 4), (0.008, 2)]
    x = np.random.default_rng(0).normal(size=(20, SPEC.input_size)).astype(np.float32)
    for model in models:
        np.testing.assert_array_equal(model.decompress(*model.compress(x)), model.quantize(x))
