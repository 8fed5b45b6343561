"""What `test_backends` lets a process do on one of Keras' backends, which is to load no other.

It is given a folder with training data, and writes there what it found: `found.json`, and arrays in `found.npz`.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import sys

import numpy as np

from vidpress.model.features import FeatureSpec
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.metrics import MetricsAccumulator
from vidpress.pipeline.launching import cli, libraries

if __name__ == "__main__":
    libraries.load_keras("vidpress", "testing")

import keras
from keras import ops

from vidpress.model.images import experiments, files
from vidpress.model.images.training import train_on_images
from vidpress.model.networks import noise, plug_in, prior_banks
from vidpress.model.networks.bottleneck import Bottleneck, bottleneck_of
from vidpress.model.networks.many_rates import ManyRatesBottleneck
from vidpress.model.networks.prior import DeepFactorized
from vidpress.model.training import checkpoints, freezing, loop, progress, task_heads
from vidpress.model.training.options import FreezingOptions, TrainingOptions
from vidpress.model.training.training_data import load_videos

SPEC = FeatureSpec.parse("rgb:24,audio:8")
CLASSES = 6

OPTIONS = TrainingOptions(
    hidden=(20, 12),
    lmbda=0.01,
    steps=8,
    num_classes=CLASSES,
    batch_size=16,
    prior_banks=1,
    decay_steps=1000,
    checkpoint_every=100,
    validate_every=5,
)
KINDS = {
    "a rate": {"prior_banks": 4, "input_dropout": 0.2, "reconstruction": 2.0},
    "many rates, a teacher": {
        "lmbda_range": (0.001, 0.02),
        "prior_banks": 4,
        "mixed_precision": True,
        "linear_bottleneck": 10,
        "reconstruction": 2.0,
    },
}
# Long enough that where a backend begins, or how it adds up, does not matter to GAP.
LEARNING = dataclasses.replace(OPTIONS, hidden=(64,), lmbda=0.002, steps=400, batch_size=100, learning_rate=0.01)
COMMAND = [
    *("--features", str(SPEC), "--classes", str(CLASSES), "--hidden", "12", "--lmbda", "0.005", "--steps", "20"),
    *("--lmbda_range", "0.001", "0.01", "--batch_size", "32", "--learning_rate", "0.01", "--banks", "4"),
]


def bits_of(network):
    """Of all variables, with what was drawn."""
    return [ops.convert_to_numpy(variable).tobytes() for variable in network.variables]


def data_in(folder):
    """Videos to train on, and others."""
    files = sorted((folder / "data").glob("*.tfrecord"))
    return [load_videos([str(file)], SPEC, CLASSES) for file in files]


def teachers_of(kind, folder):
    return [FrozenModel.load(folder / "teacher.safetensors")] if "teacher" in kind else []


def layers_on_given_values(arrays):
    """What layers give, and their gradients, where nothing depends on where a backend begins."""
    rng = np.random.default_rng(0)
    z = rng.exponential(1.5, (40, 6)).astype(np.float32)
    prior = DeepFactorized(seed=1)
    prior.build(z.shape)
    for weight in prior.trainable_variables:
        weight.assign(ops.convert_to_numpy(weight) + rng.normal(0, 0.3, weight.shape))
    arrays["log_prob"] = ops.convert_to_numpy(prior.log_prob(z, 1.3, -0.2))
    tables = prior.tables()
    arrays["prior_cdf"], arrays["prior_offset"] = tables.cdf, tables.cdf_offset
    prior_banks._BANKS_FROM = 5
    kinds = (np.arange(6) // 3 == rng.integers(2, size=(40, 1))) * 1.2
    bottleneck = Bottleneck(0.01, num_banks=2, seed=3)
    many = ManyRatesBottleneck(0.001, 0.01, num_banks=2, seed=3)
    position = np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    losses = []
    for _ in range(12):
        values = (kinds * (rng.random((40, 6)) < 0.9)).astype(np.float32)
        z_hat = bottleneck(values, training=True)
        np.testing.assert_array_equal(ops.convert_to_numpy(z_hat), np.rint(values))
        many([values, position], training=True)
        losses += [float(ops.convert_to_numpy(layer.losses[0])) for layer in (bottleneck, many)]
    arrays["losses"] = np.array(losses)
    arrays["tilt"] = ops.convert_to_numpy(bottleneck._banks._tilt)
    arrays["tilt_of_many"] = ops.convert_to_numpy(many._banks._tilt)
    arrays["noise"] = ops.convert_to_numpy(noise.uniform((50, 7), 2**32 - 1, ops.convert_to_tensor(5)))
    prior_banks._BANKS_FROM = 3  # so that the trainings below come to it


def trainings(folder, training, validation, found):
    """Whether what is stopped and goes on has the same bits."""
    for name, changes in KINDS.items():
        options = dataclasses.replace(OPTIONS, **changes)
        teachers = teachers_of(name, folder)
        through = loop.train(
            options, SPEC, training, str(folder / f"through {name}"), validation=validation, teachers=teachers
        )
        stops = iter(step == 3 for step in range(1, options.steps + 1))
        with contextlib.suppress(loop.TrainingStopped):
            loop.train(
                options,
                SPEC,
                training,
                str(folder / f"stopped {name}"),
                teachers=teachers,
                asked_to_stop=lambda stops=stops: next(stops),
            )
        (checkpoint,) = checkpoints.checkpoint_paths(str(folder / f"stopped {name}"))
        assert checkpoint.endswith("step-00000003.safetensors")
        keras.utils.clear_session()
        resumed = loop.train(options, SPEC, training, str(folder / f"stopped {name}"), teachers=teachers)
        found[f"{name}: the same bits"] = bits_of(resumed) == bits_of(through)
        begun = loop.build_network(options, SPEC, None)
        found[f"{name}: moved"] = bits_of(begun) != bits_of(through)
        found[f"{name}: banks differ"] = bool(np.ptp(ops.convert_to_numpy(bottleneck_of(through)._banks._tilt)) > 0)


def taken_over(folder, training, validation, found, arrays):
    """A training that TensorFlow began, as it is and gone on with."""
    work_dir = str(folder / "of tensorflow")
    trained = loop.load_trained(work_dir)
    x = np.asarray(validation.x)
    arrays["taken_over_logits"] = ops.convert_to_numpy(trained.network(x, training=False))
    model = freezing.freeze(trained.network, SPEC, training, FreezingOptions(banks=4))
    found["frozen"] = model.model_id
    options = dataclasses.replace(trained.options, steps=trained.options.steps + 4)
    for index, variable in enumerate(loop.train(options, SPEC, training, work_dir).trainable_variables):
        arrays[f"gone_on_{index}"] = ops.convert_to_numpy(variable)


def learning(folder, training, validation, found):
    network = loop.train(LEARNING, SPEC, training, str(folder / "learning"))
    found["gap"] = progress.evaluate_network(network, validation).gap
    model = freezing.freeze(network, SPEC, training, FreezingOptions(banks=1, rounding_lmbda=0.0))
    measured = freezing.measure(model, validation)
    found["frozen gap"], found["bytes"] = measured["gap"], measured["bytes_per_video"]
    head = task_heads.train_head(model.quantize(training.x).astype(np.float32), training, CLASSES)
    logits = head.logits(model.quantize(validation.x).astype(np.float32))
    metrics = MetricsAccumulator(CLASSES)
    metrics.update(logits, validation.multi_hot(np.arange(len(validation)), CLASSES))
    found["head's gap"] = metrics.result().gap


def plugged_in(found):
    """Any Keras model, trained by Keras' own loop."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3, 3, 12)).astype(np.float32)
    y = x.mean(axis=(1, 2))[:, :3] * 10
    image = keras.Input((3, 3, 12))
    features = keras.layers.Dense(6, activation="relu")(image)  # of each position
    features = Bottleneck(0.001, num_banks=2)(features * 3)
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(features)))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    history = model.fit(x, y, batch_size=50, epochs=6, verbose=0).history["loss"]
    found["fit learns"] = history[-1] < 0.5 * history[0]
    z_hat = plug_in.quantize(model, x)
    for tables, num_banks in (("empirical", 4), ("prior", 1)):
        codec = plug_in.freeze(model, x, tables=tables, num_banks=num_banks)
        codes = codec.compress(z_hat)
        np.testing.assert_array_equal(codec.decompress(codes), z_hat)
    bits = float(np.mean(ops.convert_to_numpy(bottleneck_of(model).information(z_hat.astype(np.float32)))))
    found["bits of the prior"], found["bits of its codes"] = bits, 8 * codec.num_bytes(codes) / len(codes)
    predicted = plug_in.head_of(model).predict(z_hat.astype(np.float32), verbose=0)
    np.testing.assert_allclose(predicted, model.predict(x, verbose=0), atol=1e-4)


def images(folder, found):
    training, test = files.load_mnist(folder / "mnist")
    experiment = dataclasses.replace(
        experiments.EXPERIMENTS["fashion-mnist-resnetv2-20"], width=4, map_shape=(4, 4, 16)
    )
    options = dataclasses.replace(experiment.options, epochs=1, batch_size=60, lmbda=0.01, learning_rate=0.01)
    network = train_on_images(experiment, options, training, folder / "images")
    logits = ops.convert_to_numpy(network(test.images / np.float32(127.5) - 1, training=False))
    found["image logits are finite"] = bool(np.isfinite(logits).all())
    finished = train_on_images(experiment, options, training, folder / "images")
    found["images: the same bits"] = bits_of(finished) == bits_of(network)


def commands(folder, found):
    data = ["--input", str(folder / "data" / "synthetic-*")]
    for name, argv in (
        ("train", [*data, *COMMAND, "--output", str(folder / "command.safetensors")]),
        (
            "freeze",
            [
                *("--training", str(folder / "command.training"), *data, "--banks", "2", "--lmbda", "0.008"),
                *("--output", str(folder / "anew.safetensors")),
            ],
        ),
    ):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            cli.main([name, *argv])
        found[name] = printed.getvalue()
    found["models"] = [FrozenModel.load(folder / f"{name}.safetensors").model_id for name in ("command", "anew")]


def main(folder: pathlib.Path) -> None:
    training, validation = data_in(folder)
    found, arrays = {"backend": keras.backend.backend()}, {}
    layers_on_given_values(arrays)
    taken_over(folder, training, validation, found, arrays)
    learning(folder, training, validation, found)
    if found["backend"] != "tensorflow":  # of which the other tests see the rest
        trainings(folder, training, validation, found)
        images(folder, found)
        commands(folder, found)
    found["loads tensorflow"] = "tensorflow" in sys.modules
    if found["backend"] != "tensorflow":
        plugged_in(found)  # last: where TensorFlow is installed, `fit` and `predict` of Keras load it
    (folder / "found.json").write_text(json.dumps(found))
    np.savez(folder / "found.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
