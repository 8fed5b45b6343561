"""Batches of images, and training on them."""

import dataclasses
import io
import math
import re

import numpy as np
import pytest
from test_image_files import write_imagenet, write_mnist

pytest.importorskip("tensorflow", reason="needs the extra vidpress[train]")

import keras
from PIL import Image

from vidpress.model.images import batches as image_batches
from vidpress.model.images import files
from vidpress.model.images import training as image_training
from vidpress.model.images.experiments import EXPERIMENTS
from vidpress.model.images.training import train_on_images
from vidpress.model.networks.bottleneck import Bottleneck
from vidpress.model.networks.many_rates import rates_of
from vidpress.model.training import checkpoints
from vidpress.model.training.checkpoints import TrainingError

FASHION = dataclasses.replace(EXPERIMENTS["fashion-mnist-resnetv2-20"], width=4, map_shape=(4, 4, 16))
OPTIONS = dataclasses.replace(FASHION.options, epochs=4, batch_size=60, lmbda=0.01, mixed_precision=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return files.load_mnist(write_mnist(tmp_path_factory.mktemp("mnist")))


def taken(data, experiment=FASHION, **options):
    options = {"batch_size": 50, "seed": 3, "first_step": 0, "num_steps": 6, **options}
    return [
        (np.asarray(pixels), np.asarray(labels))
        for pixels, labels in image_batches.training_batches(data, experiment, **options)
    ]


def test_every_image_comes_once_an_epoch_and_a_step_depends_on_its_number_alone(data):
    training, _ = data
    plain = dataclasses.replace(FASHION, flip=False)
    batches = taken(training, plain, batch_size=40)
    for epoch in (batches[:3], batches[3:]):
        found = np.concatenate([pixels for pixels, _ in epoch])
        expected = training.images.astype(np.float32) / 127.5 - 1
        assert {image.tobytes() for image in found} == {image.tobytes() for image in expected}
        assert np.bincount(np.concatenate([labels for _, labels in epoch])).tolist() == [12] * 10
    assert (batches[0][0] != batches[3][0]).any()
    augmented = dataclasses.replace(FASHION, max_shift=4)
    later = taken(training, augmented, first_step=4, num_steps=2)
    for expected, found in zip(taken(training, augmented)[4:], later, strict=True):
        np.testing.assert_array_equal(expected[0], found[0])
        np.testing.assert_array_equal(expected[1], found[1])
    assert (taken(training, augmented, seed=4)[4][0] != later[0][0]).any()


def test_images_are_shifted_and_mirrored():
    image = np.arange(1, 13, dtype=np.uint8).reshape(1, 3, 4, 1)
    found = {
        image_batches.shifted(image, np.random.default_rng(seed), 1, True)[0, ..., 0].tobytes() for seed in range(300)
    }
    padded = np.pad(image[0, ..., 0], 1)
    windows = [padded[top : top + 3, left : left + 4] for top in range(3) for left in range(3)]
    assert found == {part.tobytes() for window in windows for part in (window, window[:, ::-1])}
    np.testing.assert_array_equal(image_batches.shifted(image, np.random.default_rng(0), 0, False), image)


def jpeg_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=100)
    return file.getvalue()


def test_imagenets_images_are_cropped(tmp_path):
    experiment = dataclasses.replace(EXPERIMENTS["imagenet-resnetv2-50"], image_shape=(56, 56, 3))
    # Red grows downwards and green to the right, so that a pixel says where it is from.
    rows, columns = np.mgrid[:96, :128]
    pixels = np.stack([rows * 2, columns * 2 - (columns > 127), np.full_like(rows, 100)], axis=-1).astype(np.uint8)
    jpeg = jpeg_of(pixels)
    write_imagenet(tmp_path, [jpeg] * 6, range(1, 7))
    write_imagenet(tmp_path, [jpeg] * 3, range(1, 4), "validation", shards=1)
    training, validation = files.load_imagenet(tmp_path)
    (batch,) = image_batches.measuring_batches(validation, experiment)
    assert len(batch[0]) == 3
    middle = (np.asarray(batch[0][0]) + 1) * 127.5
    # 84 of 96 rows, and as many of 128 columns: 7/8 of the shorter side.
    assert middle[0, 0, 0] == pytest.approx(2 * 6, abs=4)
    assert middle[-1, 0, 0] == pytest.approx(2 * 89, abs=4)
    assert middle[0, 0, 1] == pytest.approx(2 * 22, abs=4)
    assert middle[0, -1, 1] == pytest.approx(2 * 105, abs=4)
    batches = taken(training, experiment, batch_size=4, num_steps=3)
    again = taken(training, experiment, batch_size=4, first_step=2, num_steps=1)
    np.testing.assert_array_equal(batches[2][0], again[0][0])
    assert sorted(np.concatenate([labels for _, labels in batches])) == sorted([*range(6)] * 2)
    crops = np.concatenate([pixels for pixels, _ in batches])
    assert crops.shape == (12, 56, 56, 3)
    starts = {(round(float(crop[0, 0, 0]), 2), round(float(crop[0, 0, 1]), 2)) for crop in crops}
    assert len(starts) > 8
    directions = {np.sign(crop[20, -1, 1] - crop[20, 0, 1]) for crop in crops}
    assert directions == {-1, 1}
    assert all(crop[-1, 20, 0] > crop[0, 20, 0] for crop in crops)


def test_a_damaged_jpeg_of_imagenet_is_named(tmp_path):
    experiment = dataclasses.replace(EXPERIMENTS["imagenet-resnetv2-50"], image_shape=(56, 56, 3))
    whole = jpeg_of(np.full((64, 64, 3), 100, np.uint8))
    write_imagenet(tmp_path, [whole[:-200]] * 3, range(1, 4))
    write_imagenet(tmp_path, [whole[:-200]], [1], "validation", shards=1)
    training, validation = files.load_imagenet(tmp_path)
    for read in (
        lambda: list(image_batches.measuring_batches(validation, experiment)),
        lambda: taken(training, experiment, batch_size=2, num_steps=1),
    ):
        with pytest.raises(Exception, match=r"0000\d-of-0000\d, byte \d+: its \d+ bytes are no image that Pillow can"):
            read()


def weights(network):
    """Of a network, with what was drawn of each seed."""
    return [variable.numpy().tobytes() for variable in network.variables]


def test_a_stopped_training_goes_on_to_the_same_weights(data, tmp_path, monkeypatch, capsys):
    training, _ = data
    network = train_on_images(FASHION, OPTIONS, training, tmp_path / "whole")
    assert re.search(r"step 8 of 8: task \d\.\d+, bits \d+", capsys.readouterr().err)
    real, calls = checkpoints.save, []

    def save_and_stop(folder, step, state, **kwargs):
        real(folder, step, state, **kwargs)
        calls.append(step)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_on_images(FASHION, OPTIONS, training, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = train_on_images(FASHION, OPTIONS, training, tmp_path / "stopped")
    assert weights(resumed) == weights(network)
    finished = train_on_images(FASHION, OPTIONS, training, tmp_path / "whole")
    assert weights(finished) == weights(network)
    with pytest.raises(TrainingError, match=r"contains a training run with lmbda 0.01, not 0.02"):
        train_on_images(FASHION, dataclasses.replace(OPTIONS, lmbda=0.02), training, tmp_path / "whole")


def test_a_network_for_many_rates_is_trained_once(data, tmp_path):
    training, _ = data
    options = dataclasses.replace(OPTIONS, lmbda_range=(0.005, 0.02))
    network = train_on_images(FASHION, options, training, tmp_path)
    trained = [variable.numpy() for variable in network.trainable_variables]
    rates = rates_of(network)
    assert rates.selected == pytest.approx(0.5)
    again = train_on_images(FASHION, dataclasses.replace(options, lmbda=0.02), training, tmp_path)
    assert rates_of(again).selected == 1.0
    for before, after in zip(trained, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(before, after)
    with pytest.raises(TrainingError, match="contains a training run with lmbda_range"):
        train_on_images(FASHION, dataclasses.replace(options, lmbda_range=(0.005, 0.03)), training, tmp_path)


def test_a_network_starts_as_its_first_teacher_and_learns_from_all(data, tmp_path):
    training, _ = data
    without_rate = dataclasses.replace(OPTIONS, lmbda=0)
    teachers = {
        str(seed): train_on_images(
            FASHION, dataclasses.replace(without_rate, seed=seed), training, tmp_path / str(seed)
        )
        for seed in (0, 1)
    }
    kernel = next(variable for variable in teachers["0"].trainable_variables if "kernel" in variable.name).numpy()

    def taught(folder, learning_rate=1e-6, **named):
        options = dataclasses.replace(OPTIONS, steps=1, epochs=None, learning_rate=learning_rate)
        network = train_on_images(FASHION, options, training, tmp_path / folder, **named)
        return next(variable for variable in network.trainable_variables if "kernel" in variable.name).numpy()

    np.testing.assert_allclose(taught("one", teachers={"0": teachers["0"]}), kernel, atol=1e-5)
    assert np.abs(taught("none") - kernel).max() > 0.001
    one, two = (
        taught(folder, 0.01, teachers={name: teachers[name] for name in names})
        for folder, names in (("first", "0"), ("both", "01"))
    )
    assert (one != two).any()
    for other in (teachers, {}):
        with pytest.raises(TrainingError, match="contains a training run with teachers"):
            taught("one", teachers=other)


def test_a_training_that_diverges_says_so():
    bottleneck, tasks = Bottleneck(0.01), [keras.ops.convert_to_tensor(task) for task in (1.0, 3.0)]
    bottleneck.bits.update_state(30.0)
    assert image_training._report(OPTIONS, 50, tasks, bottleneck) == {"task": "2.000", "bits": "30.0"}
    assert tasks == []
    bottleneck.bits.update_state(20.0)
    assert image_training._report(OPTIONS, 50, [2.5], bottleneck) == {"task": "2.500", "bits": "20.0"}
    with pytest.raises(
        TrainingError, match=r"loss is nan at step 100: lower learning_rate=0.002 or prior_learning_rate=0.01\.$"
    ):
        image_training._report(OPTIONS, 100, [1.0, np.nan], bottleneck)


def test_a_training_is_as_long_as_its_steps_or_epochs_say_and_decays_over_all_of_it(data):
    training, _ = data
    by_steps = dataclasses.replace(OPTIONS, epochs=None, steps=7, decays=())
    assert image_training.num_steps(by_steps, training) == 7
    assert image_training.num_steps(dataclasses.replace(OPTIONS, epochs=3), training) == 6
    for last_step in (8, 80):
        steps = [0, last_step // 4, last_step // 2, last_step]
        cosine = image_training.learning_rates(0.005, (), last_step)
        expected = [0.0025 * (1 + math.cos(math.pi * step / last_step)) for step in steps]
        assert [float(cosine(step)) for step in steps] == pytest.approx(expected, abs=1e-8)
        falling = image_training.learning_rates(0.1, (0.5, 0.75), last_step)
        assert [float(falling(step)) for step in steps] == pytest.approx([0.1, 0.1, 0.01, 0.001])
