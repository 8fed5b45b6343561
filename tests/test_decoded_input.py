"""A training job of today, on what was encoded, and on what `vidpress decode --as input` gives back."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

from conftest import SPEC

from vidpress.model import metrics
from vidpress.model.records.examples import serialize_record
from vidpress.model.records.tfrecord import write_tfrecords
from vidpress.model.training import loop
from vidpress.model.training.options import TrainingOptions
from vidpress.model.training.training_data import load_videos
from vidpress.pipeline import decode, encode, train

NUM_CLASSES = 8
OLD_CLASSES = 4
OPTIONS = TrainingOptions(
    hidden=(32,), lmbda=0.0, steps=150, num_classes=NUM_CLASSES, batch_size=64, learning_rate=0.01, prior_banks=1
)


def write(path, num_videos, seed, classes):
    """Videos around a few centres, with labels of some of their classes: a video of class 3 has no label of class 7."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(0, 1, (NUM_CLASSES, SPEC.input_size))
    payloads = []
    for number in range(num_videos):
        own = rng.choice(NUM_CLASSES, 2, replace=False)
        x = (centres[own].sum(axis=0) + rng.normal(0, 0.5, SPEC.input_size)).astype(np.float32)
        labels = [int(label) for label in sorted(own) if label in classes] or [0]
        record = {"id": f"{seed}-{number}".encode(), "labels": labels, "mean_rgb": x[:24], "mean_audio": x[24:]}
        payloads.append(serialize_record(record))
    with path.open("wb") as file:
        write_tfrecords(file, payloads)
    return str(path)


def hit_at_1(training, validation, folder):
    network = loop.train(OPTIONS, SPEC, training, str(folder))
    labels = validation.multi_hot(np.arange(len(validation)), NUM_CLASSES)
    return metrics.evaluate(np.asarray(network(np.asarray(validation.x))), labels).hit_at_1


def test_a_job_learns_a_new_task_from_what_is_given_back(tmp_path):
    old = write(tmp_path / "old", 1500, 0, range(OLD_CLASSES))
    model = str(tmp_path / "model.safetensors")
    train.main(
        [
            *("--input", old, "--output", model, "--features", str(SPEC), "--classes", str(OLD_CLASSES)),
            *("--hidden", "48", "--lmbda", "0.001", "--reconstruction", "20", "--steps", "250", "--batch_size", "64"),
            *("--learning_rate", "0.01", "--banks", "4", "--prior_banks", "1"),
        ]
    )
    found = {}
    for name, num_videos, seed in (("training", 1500, 1), ("validation", 500, 2)):
        original = write(tmp_path / name, num_videos, seed, range(NUM_CLASSES))
        compact, restored = str(tmp_path / f"compact {name}"), tmp_path / f"restored {name}"
        encode.main(["--input", original, "--model", model, "--output", compact])
        decode.main(["--input", compact, "--output", str(restored), "--as", "input"])
        (file,) = map(str, restored.glob("videos-*.tfrecord"))
        found[name] = [load_videos([path], SPEC, NUM_CLASSES) for path in (original, file)]
    originals = hit_at_1(*(found[name][0] for name in ("training", "validation")), tmp_path / "a")
    restored = hit_at_1(*(found[name][1] for name in ("training", "validation")), tmp_path / "b")
    nothing = dataclasses.replace(found["training"][1], x=np.roll(found["training"][1].x, 1, axis=0))
    chance = hit_at_1(nothing, found["validation"][1], tmp_path / "c")
    assert originals > 0.9
    assert restored > originals - 0.1
    assert restored > chance + 0.3
