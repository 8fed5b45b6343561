"""Fixtures and helpers.

`data_dir`: the real data, or a skip; `VIDPRESS_DATA` or `../shared/data` beside the checkout.
`spec`, `model`, `model_path`: a small random model of two features.
`frame_level`, `video_level`: serialized records of made-up videos, by index.
`write_records`: writes payloads to a TFRecord file.
"""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pathlib
import signal

import hypothesis
import numpy as np
import pytest

from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.frozen.input_decoder import fit_input_decoder
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.tfrecord import write_tfrecords
from vidpress.model.tables.banks import fit_banks
from vidpress.model.tables.range_coding_tables import RangeCodingTables

# A shell's background jobs ignore Ctrl-C, and so would all that the tests start.
with contextlib.suppress(ValueError):
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Trainings of tests are short: compiling a step well takes longer than making all of them. What tests start has it too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# No test asserts a time, Hypothesis' deadline included.
hypothesis.settings.register_profile("vidpress", deadline=None)
hypothesis.settings.load_profile("vidpress")

# They run under Airflow's own Python: `make test-airflow`.
collect_ignore = ["dags"]

# What takes longest, the longest first. It begins first, so that no process is left with it at the end. Before that
# comes what forks, while a process is still small.
LONGEST = (
    "torch_dataset",
    *("pipeline_evaluate", "protocol", "training", "backends", "pipeline_train", "pipeline_evaluate_images"),
    *("readme", "image_training", "range_coder", "benchmarks", "append", "freezing", "demo"),
)

REPO = pathlib.Path(__file__).resolve().parent.parent
SPEC = FeatureSpec.parse("rgb:24,audio:8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST` first."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    path = pathlib.Path(os.environ.get("VIDPRESS_DATA", REPO.parent / "shared" / "data"))
    if not (path / "yt8m_v2_video").is_dir():
        pytest.skip(f"needs the real YouTube-8M data: no {path}/yt8m_v2_video (name it with VIDPRESS_DATA)")
    return path


def inputs(num_videos: int, seed: int = 1) -> np.ndarray:
    """Normal float32 inputs of `SPEC`."""
    return np.random.default_rng(seed).normal(size=(num_videos, SPEC.input_size)).astype(np.float32)


def random_model(
    spec: FeatureSpec, hidden: tuple[int, ...] = (40,), num_classes: int = 7, seed: int = 0, num_banks: int = 4
) -> FrozenModel:
    """A model of random weights whose z_hat are mostly zero, with tables and a decoder fitted to them."""
    rng = np.random.default_rng(seed)
    sizes = [spec.input_size, *hidden]
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        kernel = rng.normal(0, 2 / np.sqrt(fan_in), (fan_in, fan_out)).astype(np.float32)
        layers.append((kernel, np.full(fan_out, -1, np.float32)))
    head = (rng.normal(size=(hidden[-1], num_classes)).astype(np.float32), np.zeros(num_classes, np.float32))
    x = rng.normal(size=(500, spec.input_size)).astype(np.float32)
    probe = x
    for kernel, bias in layers:
        probe = np.maximum(probe @ kernel + bias, 0)
    z_hat = np.rint(probe).astype(np.int32)
    tables = fit_banks(RangeCodingTables.fit(z_hat), z_hat, num_banks)
    decoder = fit_input_decoder([(z_hat, x)])
    return FrozenModel(spec, tuple(layers), tables, head, {"lmbda": 0.002, "seed": seed}, decoder=decoder)


@pytest.fixture(scope="session")
def spec() -> FeatureSpec:
    return SPEC


@pytest.fixture(scope="session")
def model() -> FrozenModel:
    return random_model(SPEC)


@pytest.fixture(scope="session")
def model_path(model, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model.save(path)
    return str(path)


@pytest.fixture
def no_garbage() -> None:
    """Before processes are forked: what TensorFlow has left would abort them if they freed it as they begin."""
    gc.collect()


def frame_level(index: int, spec: FeatureSpec = SPEC, num_frames: int | None = None, **context) -> bytes:
    """A serialized SequenceExample: everything follows from the index; further context features replace."""
    rng = np.random.default_rng(index)
    num_frames = 1 + index % 9 if num_frames is None else num_frames
    frames = {feature.name: rng.integers(0, 256, (num_frames, feature.size), np.uint8) for feature in spec.features}
    return serialize_record({"id": f"video{index:05d}".encode(), "labels": _labels(rng), **context}, frames)


def video_level(index: int, spec: FeatureSpec = SPEC, **context) -> bytes:
    """A serialized Example: everything follows from the index; further features replace."""
    rng = np.random.default_rng(index)
    features = {feature.mean_name: rng.normal(size=feature.size).astype(np.float32) for feature in spec.features}
    return serialize_record({"id": f"video{index:05d}".encode(), "labels": _labels(rng), **features, **context})


def _labels(rng: np.random.Generator) -> list[int]:
    return sorted(rng.choice(7, rng.integers(0, 4), replace=False).tolist())


def write_records(path: pathlib.Path, payloads: list[bytes]) -> str:
    with path.open("wb") as file:
        write_tfrecords(file, payloads)
    return str(path)


def forked(target) -> multiprocessing.Process:
    """Start a function in a fork of this process, for it to be killed in."""

    def run():
        # TensorFlow, which other tests have loaded, does not survive that what it holds is freed in a fork.
        gc.freeze()
        target()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process
