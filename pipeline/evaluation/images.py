"""Evaluations of images: an experiment's options, its rivals, and how its points are measured."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vidpress.model import metrics
from vidpress.model.images import files
from vidpress.model.images.experiments import OPTIMIZERS, Experiment, Images, ImageTrainingOptions
from vidpress.model.metrics import deflated_bytes
from vidpress.model.tables.bits import bits_by_dim
from vidpress.model.training.options import TABLES, FreezingOptions
from vidpress.pipeline.evaluation.kinds import Kind, Vectors
from vidpress.pipeline.evaluation.points import (
    BASELINE_PLACEHOLDER,
    BASELINES_PLACEHOLDER,
    PAPER,
    CodecPoint,
    Context,
    ModelPoint,
    by_rank,
    training_seconds,
)
from vidpress.pipeline.evaluation.rivals.registry import ACTIVATIONS, fitted_to
from vidpress.pipeline.launching import launch
from vidpress.pipeline.training.options import fields_of

if TYPE_CHECKING:
    import keras

# The training error is measured on at most this many training images; and tables and rivals are fitted to at most this
# many.
_TRAINING_SAMPLE = 10_000
_FITTING_SAMPLE = 100_000
# Rivals are fitted to features that take at most this many bytes. Only ImageNet's feature maps would take more.
_FITTING_BYTES = 2**32


@dataclasses.dataclass(frozen=True)
class ImageKind(Kind):
    """Labelled images, and a network of convolutions for them.

    Attributes:
      experiment: Which images, and which network.
    """

    experiment: Experiment

    # As for videos: the paper codes with the trained prior's tables, one for all images.
    methods = ("vidpress:", f"{PAPER}: --prior_banks 1 --tables prior --banks 1")
    needed_options = ("input",)

    def about(self) -> dict[str, Any]:
        """Return what the experiment is, and its task."""
        return {
            "task": "images of many classes" if self.experiment.num_classes >= 1000 else "images",
            "experiment": self.experiment.name,
            "network": self.experiment.network,
            "data_set": self.experiment.data_set,
        }

    def add_network_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that say what is coded, and how the network is trained; the defaults are the experiment's."""
        options, freezing = self.experiment.options, FreezingOptions()
        network = parser.add_argument_group("network")
        default = "map" if self.experiment.options.spatial else "vector"
        network.add_argument(
            "--bottleneck",
            nargs="+",
            choices=("map", "vector"),
            default=[default],
            help="what is coded: the last feature map, as in the paper, where all positions of a channel share their "
            f"tables, or the vector after pooling it, or both, each with its baseline (default: {default})",
        )
        network.add_argument("--tables", choices=TABLES, default=freezing.tables, help="range coding tables")
        network.add_argument(
            "--banks", type=int, default=freezing.banks, help="banks of tables, a power of two up to 256"
        )
        training = parser.add_argument_group("training")
        training.add_argument(
            "--lmbda_range",
            type=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help="train one network for all rates from LOW to HIGH, and freeze it at every --lmbda",
        )
        training.add_argument(
            "--prior_banks",
            type=int,
            default=options.prior_banks,
            help="banks of the prior in training, ideally as many as --banks; the paper has 1",
        )
        training.add_argument(
            "--teacher",
            choices=(BASELINE_PLACEHOLDER, BASELINES_PLACEHOLDER),
            help="start as the baseline of the same seed, and learn its class probabilities besides the labels, or "
            "the mean of those of all seeds' baselines",
        )
        length = training.add_mutually_exclusive_group()
        default = f"{options.epochs} epochs" if options.steps is None else f"{options.steps} steps"
        length.add_argument(
            "--steps", type=int, help=f"how long the training is; what decays, decays over it (default: {default})"
        )
        length.add_argument("--epochs", type=int, help="the same, in passes over the training images")
        training.add_argument("--batch_size", type=int, default=options.batch_size, help="images in a step")
        training.add_argument(
            "--optimizer",
            choices=OPTIMIZERS,
            default=options.optimizer,
            help="optimizer of all weights but the prior's",
        )
        training.add_argument(
            "--learning_rate", type=float, default=options.learning_rate, help="learning rate at the start"
        )
        training.add_argument(
            "--prior_learning_rate",
            type=float,
            default=options.prior_learning_rate,
            help="Adam's learning rate for the prior, at the start",
        )
        training.add_argument(
            "--decays",
            type=float,
            nargs="*",
            default=list(options.decays),
            help="shares of the training after which the learning rates fall to a tenth; with none, they fall to 0 "
            "like a cosine",
        )
        training.add_argument("--weight_decay", type=float, default=options.weight_decay, help="L2 penalty on kernels")
        training.add_argument(
            "--mixed_precision",
            action="store_true",
            help="multiply in bfloat16: faster on GPUs and processors with AVX-512 BF16 or AMX, slower on others",
        )
        training.add_argument(
            "--seed", type=int, default=0, help="seed of the weights, the noise, the order and the augmentation"
        )

    def add_options(
        self, files: argparse._ArgumentGroup, sweep: argparse._ArgumentGroup, rivals: argparse._ArgumentGroup
    ) -> None:
        """Add the options for the data."""
        files.add_argument(
            "--input",
            metavar="PATH",
            type=launch.local_folder,
            help=f"folder with {self.experiment.data_set} as published, or a file that holds all of it: "
            f"{self.experiment.files}",
        )
        files.add_argument(
            "--hold_out",
            type=launch.positive_int,
            default=0,
            metavar="IMAGES",
            help="measure on this many of the training images instead of the test images, and do not train on them: to "
            "choose options",
        )

    def complete_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with what follows from them: the length of the training, and whether it codes a map."""
        completed = {**options, "spatial": tuple(options["hidden"]) == self.experiment.map_shape}
        if options["steps"] is None and options["epochs"] is None:
            own = self.experiment.options
            completed |= {"steps": own.steps, "epochs": own.epochs}
        ImageModelOptions.of(completed)
        return completed

    @property
    def baseline_options(self) -> dict[str, Any]:
        """No range, one bank, and the experiment's values of the options that have no effect without a rate."""
        prior_learning_rate = self.experiment.options.prior_learning_rate
        one = {"tables": "empirical", "banks": 1, "prior_banks": 1}
        return {"teacher": None, "lmbda_range": None, **one, "prior_learning_rate": prior_learning_rate}

    def fixed_options(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return the experiment."""
        return {"experiment": self.experiment.name}

    def architectures(self, args: argparse.Namespace) -> Sequence[tuple[int, ...]]:
        """Return the shapes of what is coded: there is one network."""
        return [self.experiment.feature_shape(name == "map") for name in dict.fromkeys(args.bottleneck)]

    def given_baselines(self, args: argparse.Namespace) -> dict[tuple[int, ...], str]:
        """Return none: networks for images are not frozen to files."""
        return {}

    def trained_as(self, baseline: ModelPoint) -> ModelPoint | None:
        """Return the baseline of the feature map: without a rate, what would be coded makes no difference."""
        if dict(baseline.options)["spatial"]:
            return None
        options = {**dict(baseline.options), "hidden": self.experiment.map_shape, "spatial": True}
        return dataclasses.replace(baseline, options=tuple(sorted(options.items())))

    def rivals(self, args: argparse.Namespace, baselines: Sequence[ModelPoint]) -> Iterator[tuple[CodecPoint, ...]]:
        """Yield the rivals of each baseline; the baseline's own head reads all of them."""
        for baseline in baselines:
            num_dims = int(np.prod(dict(baseline.options)["hidden"]))
            yield tuple(
                CodecPoint(rival.name, size, baseline, "baseline")
                for rival in fitted_to(ACTIVATIONS, args.rivals)
                if rival.on_images
                for size in rival.settings(num_dims, small=True)
            )

    def context(self, args: argparse.Namespace, work_dir: str) -> Context:
        """Return what all points share, except the data's fingerprints."""
        return Context(
            input=(args.input,),
            validation=(args.input,),
            features=f"images:{'x'.join(map(str, self.experiment.image_shape))}",
            classes=self.experiment.num_classes,
            output=args.output,
            work_dir=work_dir,
            held_out=args.hold_out,
        )

    def load_data(self, context: Context) -> tuple[Images, Images]:
        """Return the training images and those that are measured, read once in a process."""
        return _load_data(self.experiment, context)

    def measure_model(self, point: ModelPoint, context: Context) -> dict[str, Any]:
        """Train, freeze and measure a network, and return its record."""
        from vidpress.model.networks import plug_in

        freezing = ImageModelOptions.of(dict(point.options)).freezing
        network, seconds, steps = _train(point, self.experiment, context)
        start = time.monotonic()
        data, test = self.load_data(context)
        record = {**point.record(steps), "vidpress": importlib.metadata.version("vidpress")}
        sample = data.subset(files.even_rows(len(data), _TRAINING_SAMPLE))
        fitting = self._fitting(point, data)
        if record["lmbda"]:
            codec = plug_in.freeze(
                network, _pixels(fitting, self.experiment), tables=freezing.tables, num_banks=freezing.banks
            )
            z_hat = plug_in.quantize(network, _pixels(test, self.experiment))
            codes = codec.compress(z_hat)
            decoded = codec.decompress(codes)
            head = plug_in.head_of(network)
            bank = codec.banks(codes)
            bits = bits_by_dim(codec.tables, decoded, bank) * (z_hat[0].size // z_hat.shape[-1])
            record |= {
                "validation": task_metrics(head, decoded, test),
                "training": task_metrics(head, plug_in.quantize(network, _pixels(sample, self.experiment)), sample),
                "bytes_per_image": codec.num_bytes(codes) / len(test),
                "tables_bytes": len(codec.tables.to_bytes()),
                "bits_per_image": float(bits.sum()),
                "bits_by_rank": by_rank(np.sort(bits)[::-1]),
            }
        else:
            encoder, head = _parts(network, point)
            z = encoder.predict(_pixels(test, self.experiment), verbose=0)
            z_sample = encoder.predict(_pixels(sample, self.experiment), verbose=0)
            record |= {
                "validation": task_metrics(head, z, test),
                "training": task_metrics(head, z_sample, sample),
                "bytes_per_image": deflated_bytes(z) / len(test),
            }
        record["seconds"] = {"train": seconds, "measure": round(time.monotonic() - start, 1)}
        return record

    def _fitting(self, point: ModelPoint, data: Images) -> Images:
        """Return the images that tables and rivals are fitted to: as many as have so many bytes of features."""
        num_bytes = 4 * int(np.prod(dict(point.options)["hidden"]))
        return data.subset(files.even_rows(len(data), min(_FITTING_SAMPLE, _FITTING_BYTES // num_bytes)))

    def vectors(self, source: ModelPoint | None, context: Context) -> Vectors:
        """Return a baseline's activations, and a function that measures its head on them."""
        if source is None:
            raise ValueError("Images have no rivals on the input.")
        data, test = self.load_data(context)
        data = self._fitting(source, data)
        sample = files.even_rows(len(data), _TRAINING_SAMPLE)
        encoder, head = _parts(_train(source, self.experiment, context)[0], source)
        z, z_test = (encoder.predict(_pixels(part, self.experiment), verbose=0) for part in (data, test))
        shape = z.shape[1:]

        def measure_head(point: CodecPoint, restored: np.ndarray, restored_test: np.ndarray) -> dict[str, Any]:
            return {
                "validation": task_metrics(head, restored_test.reshape(-1, *shape), test),
                "training": task_metrics(head, restored[sample].reshape(-1, *shape), data.subset(sample)),
            }

        return Vectors(z.reshape(len(z), -1), z_test.reshape(len(z_test), -1), measure_head)


@dataclasses.dataclass(frozen=True)
class ImageModelOptions:
    """How a network on images is trained, and how its features are frozen."""

    training: ImageTrainingOptions
    freezing: FreezingOptions

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ImageModelOptions:
        """Return the options that `values` have, by the names of `ImageKind.add_network_options`.

        Raises:
          ValueError: If one is out of range, or two do not go together; the message names them.
        """
        training, freezing = fields_of(ImageTrainingOptions, values), fields_of(FreezingOptions, values)
        freezing.check_rate(training.lmbda, training.lmbda_range)
        return cls(training, freezing)


def _load_data(experiment: Experiment, context: Context) -> tuple[Images, Images]:
    return _load_once(experiment, context.input[0], context.held_out)


@functools.lru_cache(maxsize=1)
def _load_once(experiment: Experiment, folder: str, held_out: int) -> tuple[Images, Images]:
    training, test = experiment.load(folder)
    if not held_out:
        return training, test
    if not 0 < held_out < len(training):
        raise files.ImageDataError(f"--hold_out {held_out} must leave some of the {len(training)} training images.")
    # Files may have one class after another.
    held_out_rows = files.even_rows(len(training), held_out)
    parts = []
    for part, chosen in (
        ("trained on", np.setdiff1d(np.arange(len(training)), held_out_rows)),
        ("held out", held_out_rows),
    ):
        subset = training.subset(chosen)
        mark = {"labelled_images": len(chosen), "sha256": f"{part}, {held_out}: {training.fingerprint['sha256']}"}
        parts.append(dataclasses.replace(subset, fingerprint={**training.fingerprint, **mark}))
    return parts[0], parts[1]


def _train(point: ModelPoint, experiment: Experiment, context: Context) -> tuple[keras.Model, float, int]:
    """Return a point's trained network, the seconds of its training, and its steps."""
    from vidpress.model.images import training as image_training

    data, _ = _load_data(experiment, context)
    folder = os.path.join(context.work_dir, "trainings", point.network_name(context))
    options = ImageModelOptions.of(dict((point.trained_as or point).options)).training
    teachers = {teacher.name(context): _train(teacher, experiment, context)[0] for teacher in point.teachers}
    start = time.monotonic()
    network = image_training.train_on_images(experiment, options, data, folder, teachers=teachers)
    seconds = training_seconds(folder, time.monotonic() - start)
    return network, seconds, image_training.num_steps(options, data)


def _parts(network: keras.Model, baseline: ModelPoint) -> tuple[keras.Model, keras.Model]:
    """Return the part of a baseline's network up to its features, and the rest of it."""
    import keras

    from vidpress.model.images.networks import FEATURES, POOL

    features = network.get_layer(FEATURES if dict(baseline.options)["spatial"] else POOL).output
    return keras.Model(network.input, features), keras.Model(features, network.output)


def _pixels(data: Images, experiment: Experiment) -> Any:
    """Return a network's input as `keras.Model.predict` takes it: a dataset or, except on TensorFlow, a generator."""
    import keras

    from vidpress.model.images.batches import measuring_batches

    batches = measuring_batches(data, experiment)
    return batches if keras.backend.backend() == "tensorflow" else iter(batches)


def task_metrics(head: keras.Model, features: np.ndarray, data: Images) -> dict[str, float]:
    """Return the metrics of a head's logits for decoded features: accuracy, top_5_accuracy and num_images."""
    logits = head.predict(features.astype(np.float32), batch_size=1024, verbose=0)
    return dataclasses.asdict(metrics.measure_accuracy(logits, labels_of(data)))


def labels_of(data: Images) -> np.ndarray:
    """Return all labels, int32[num_images]."""
    if isinstance(data, files.LabelledImages):
        return data.labels
    chunks = np.array_split(np.arange(len(data)), max(1, len(data) // 1024))
    return np.concatenate([data.read(rows)[1] for rows in chunks])
