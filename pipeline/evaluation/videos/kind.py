"""Evaluations of videos: their options, their rivals, and how their points are measured."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.metrics import deflated_bytes
from vidpress.model.training.options import FreezingOptions
from vidpress.pipeline.evaluation import new_tasks
from vidpress.pipeline.evaluation.kinds import Kind, Vectors
from vidpress.pipeline.evaluation.new_tasks import NewTaskError
from vidpress.pipeline.evaluation.points import (
    NO_HEAD,
    PAPER,
    CodecPoint,
    Context,
    ModelPoint,
    training_seconds,
)
from vidpress.pipeline.evaluation.rivals.codecs import Codec
from vidpress.pipeline.evaluation.rivals.registry import ACTIVATIONS, FEATURES, Rival, fitted_to
from vidpress.pipeline.evaluation.videos import data
from vidpress.pipeline.evaluation.videos.measuring import chunks, measure_shard, stored_features, task_metrics
from vidpress.pipeline.evaluation.videos.new_task_heads import measure_heads
from vidpress.pipeline.launching import launch, record_options
from vidpress.pipeline.training import jobs
from vidpress.pipeline.training.options import ModelOptions, add_model_options, default_values, paper_options, sizes

if TYPE_CHECKING:
    from vidpress.model.training.training_data import LabelledVideos

# The training error is measured on at most this many training videos; rivals are fitted to at most this many.
_TRAINING_SAMPLE = 10_000
_FITTING_SAMPLE = 200_000


class VideoKind(Kind):
    """Labelled videos in TFRecords, and networks of dense layers for them."""

    # The paper learns from the labels, and codes with the trained prior's tables, one for all videos.
    methods = ("vidpress:", f"{PAPER}: {paper_options()}")
    needed_options = ("input", "validation")

    def about(self) -> dict[str, Any]:
        """Return nothing: a results.json that says nothing about its kind is about videos."""
        return {}

    def add_network_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of `vidpress train`; `--hidden` can be given once for each architecture."""
        add_model_options(parser)
        parser.add_argument_group("architectures").add_argument(
            "--hidden",
            type=sizes,
            action="append",
            default=None,
            help="units of the hidden layers; once for each architecture (default: 2000)",
        )

    def add_options(
        self, files: argparse._ArgumentGroup, sweep: argparse._ArgumentGroup, rivals: argparse._ArgumentGroup
    ) -> None:
        """Add the options for the data and their records, for given baselines, and for heads of rivals."""
        files.add_argument(
            "--input", nargs="+", metavar="GLOB", type=launch.absolute, help="training data; .gz is unpacked"
        )
        files.add_argument(
            "--validation",
            nargs="+",
            metavar="GLOB",
            type=launch.absolute,
            help="data that everything is measured on",
        )
        record_options.add_record_options(files)
        new_tasks.add_options(files)
        sweep.add_argument(
            "--baseline",
            action="append",
            metavar="MODEL.safetensors",
            help="a frozen model, trained with --lmbda 0, to use as the baseline of its architecture instead of "
            "training one",
        )
        rivals.add_argument(
            "--rival_bytes",
            type=launch.positive_int,
            nargs="+",
            metavar="BYTES",
            help="sizes of the quantizers' codes; local search takes multiples of 4 (default: 8 to 256, by quantizer)",
        )
        rivals.add_argument(
            "--no_network_heads",
            action="store_true",
            help="on codes of the input features, train only logistic heads, not the first --hidden network too",
        )

    def complete_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options as they are, if a model can be trained with them: they are those of `vidpress train`."""
        ModelOptions.of(options)
        return dict(options)

    @property
    def baseline_options(self) -> dict[str, Any]:
        """No teacher, no range, nothing else to learn, and the defaults of the options that need a rate or freeze."""
        names = ("prior_banks", "prior_learning_rate", "reconstruction")
        layers = ("linear_bottleneck", "score_bottleneck", "width_multiplier")
        nothing = {name: default_values()[name] for name in (*names, *layers)}
        return {"teacher": [], "lmbda_range": None, **nothing, **dataclasses.asdict(FreezingOptions(banks=1))}

    def fixed_options(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return none: a method can choose them all."""
        return {}

    def architectures(self, args: argparse.Namespace) -> Sequence[tuple[int, ...]]:
        """Return what `--hidden` names."""
        return args.hidden or [(2000,)]

    def given_baselines(self, args: argparse.Namespace) -> dict[tuple[int, ...], str]:
        """Return the models that `--baseline` names, by their hidden layers' units."""
        given = {}
        for path in args.baseline or []:
            model = FrozenModel.load(path)
            if model.metadata.get("lmbda") != 0 or model.head is None:
                raise ValueError(
                    f"--baseline {path} must be a model with its task head that was trained with --lmbda 0."
                )
            if not model.spec.gives_same_input(args.features) or model.head[0].shape[1] != args.classes:
                raise ValueError(
                    f"--baseline {path} takes {model.spec} and has {model.head[0].shape[1]} classes: it must be for "
                    f"--features {args.features} and --classes {args.classes}."
                )
            given[tuple(kernel.shape[1] for kernel, _ in model.hidden)] = path
        return given

    def rivals(self, args: argparse.Namespace, baselines: Sequence[ModelPoint]) -> Iterator[tuple[CodecPoint, ...]]:
        """Yield the rivals on the activations of each of the baselines, and on the input features."""
        for baseline in baselines:
            rivals = fitted_to(ACTIVATIONS, args.rivals)
            on_activations = [rival for rival in rivals if baseline is baselines[0] or not rival.slow]
            num_dims = dict(baseline.options)["hidden"][-1]
            yield from _rival_tasks(on_activations, baseline, num_dims, args)
        on_input = fitted_to(FEATURES, args.rivals)
        yield from _rival_tasks(on_input, None, args.features.input_size, args)
        if not args.no_network_heads:
            for rival in on_input:
                sizes = rival.settings(args.features.input_size, num_bytes=args.rival_bytes) if rival.sizes else []
                for size in sizes:
                    yield (CodecPoint(rival.name, size, None, "network", baselines[0].options),)

    def context(self, args: argparse.Namespace, work_dir: str) -> Context:
        """Return what all points share, except the data's fingerprints."""
        features = record_options.with_keys(args.features, args)
        return Context(
            tuple(args.input),
            tuple(args.validation),
            features,
            args.classes,
            args.output,
            work_dir,
            new_tasks=new_tasks.of_options(args),
        )

    def resolved(self, context: Context) -> Context:
        """Return the context with the classes that are new."""
        return data.choose_classes(context)

    def check_given_models(self, points: Iterable[ModelPoint], context: Context) -> None:
        """Check that models in files know no label of the new classes, if some classes are held out."""
        if context.new_tasks is None or context.new_tasks.held_out is None:
            return
        for point in points:
            trained_here = {teacher.model_path(context) for teacher in point.teachers}
            teachers = set(point.resolved_options(context)["teacher"]) - trained_here
            for path in sorted(teachers | ({point.baseline} if point.baseline else set())):
                training_data = FrozenModel.load(path).metadata.get("training_data") or {}
                if training_data.get("sha256") != context.training_sha256:
                    raise NewTaskError(
                        f"{path} was not trained on --input without the new classes, which it must not have seen: "
                        "leave it out, and such a model is trained."
                    )

    def load_data(self, context: Context) -> tuple[LabelledVideos, LabelledVideos]:
        """Return the training and the validation videos, read once in a process."""
        return data.load_data(context)

    def measure_model(self, point: ModelPoint, context: Context) -> dict[str, Any]:
        """Train, freeze and measure a network, and return its record."""
        model = _frozen_model(point, context)
        videos, validation = data.load_data(context)
        start = time.monotonic()
        record = {**point.record(model.metadata.get("steps")), "model_id": model.model_id}
        sample = videos.sample(_TRAINING_SAMPLE)
        if record["lmbda"]:
            record |= measure_shard(model, validation)
            record["training"] = task_metrics(lambda x: model.logits(model.quantize(x)), sample)
        else:
            record["validation"] = task_metrics(_network_logits(model), validation)
            record["training"] = task_metrics(_network_logits(model), sample)
            record["bytes_per_video"] = deflated_bytes(_features(model, validation)) / len(validation)
            record["rounded"] = measure_shard(model, validation)
        record |= _measure_new_tasks(context, lambda videos: _read_back(model, videos))
        record["seconds"] = {"train": model.metadata.get("seconds"), "measure": round(time.monotonic() - start, 1)}
        return record

    def vectors(self, source: ModelPoint | None, context: Context) -> Vectors:
        """Return a baseline's activations, or the input, and a function that measures a head on them."""
        videos, validation = data.load_data(context)
        videos = videos.sample(_FITTING_SAMPLE)
        baseline = None if source is None else _frozen_model(source, context)

        def measure_head(point: CodecPoint, restored: np.ndarray, restored_validation: np.ndarray) -> dict[str, Any]:
            return _measure_head(point, baseline, (videos, restored), (validation, restored_validation), context)

        def measure_codec(codec: Codec) -> dict[str, Any]:
            return _measure_new_tasks(context, lambda videos: codec.decode(codec.encode(_features(baseline, videos))))

        head = None if baseline is None else baseline.head
        return Vectors(_features(baseline, videos), _features(baseline, validation), measure_head, head, measure_codec)


def _rival_tasks(
    rivals: Sequence[Rival], source: ModelPoint | None, num_dims: int, args: argparse.Namespace
) -> Iterator[tuple[CodecPoint, ...]]:
    """Yield the points of rivals on one source: the paper's, those without a choice of sizes, and then one by one."""

    def task(rivals: Sequence[Rival], heads: Sequence[str]) -> tuple[CodecPoint, ...]:
        settings = [
            (rival, size)
            for rival in rivals
            for size in rival.settings(args.classes if rival.gives_scores else num_dims, num_bytes=args.rival_bytes)
        ]
        return tuple(
            CodecPoint(rival.name, size, source, head)
            for rival, size in settings
            for head in ([NO_HEAD] if rival.gives_scores else heads)
        )

    others = [rival for rival in rivals if not rival.paper]
    heads = ["logistic"] if source is None else ["baseline", "logistic"]
    tasks = [
        task([rival for rival in rivals if rival.paper], ["baseline"]),
        task([rival for rival in others if not rival.sizes], heads),
        *(task([rival], heads) for rival in others if rival.sizes),
    ]
    yield from filter(None, tasks)


def _frozen_model(point: ModelPoint, context: Context) -> FrozenModel:
    """Return a point's frozen network, which is trained if it is not there yet."""
    for teacher in point.teachers:
        _frozen_model(teacher, context)  # its record may be finished, and its file gone
    videos, validation = data.load_data(context)
    options = ModelOptions.of(point.resolved_options(context))
    network_dir = os.path.join(context.work_dir, "trainings", point.network_name(context))
    path = point.model_path(context)
    if os.path.exists(path):
        model = FrozenModel.load(path)
    else:
        model, seconds = jobs.train_model(options, context.spec, videos, validation, network_dir)
        model = dataclasses.replace(
            model, metadata={**model.metadata, "seconds": training_seconds(network_dir, seconds)}
        )
        model.save(path)
    return model


def _measure_head(
    point: CodecPoint,
    baseline: FrozenModel | None,
    training: tuple[LabelledVideos, np.ndarray],
    validation: tuple[LabelledVideos, np.ndarray],
    context: Context,
) -> dict[str, Any]:
    """Return the metrics of a head on restored features, and what the head is."""
    # Heads are measured on videos whose `x` is what was stored and read back.
    (videos, restored), (validation_videos, restored_validation) = training, validation
    stored = dataclasses.replace(videos, x=restored, fingerprint={**videos.fingerprint, "sha256": point.name(context)})
    stored_validation = dataclasses.replace(validation_videos, x=restored_validation)
    about: dict[str, Any] = {}
    logits: Callable[[np.ndarray], np.ndarray]
    if point.head == "network":
        options = ModelOptions.of(dict(point.options))
        network_dir = os.path.join(context.work_dir, "trainings", point.name(context))
        model, seconds = jobs.train_model(options, context.spec, stored, None, network_dir)
        about["train_seconds"] = training_seconds(network_dir, seconds)
        logits = _network_logits(model)
    elif point.head == NO_HEAD:
        logits = _identity
    elif point.head == "logistic":
        from vidpress.model.training import task_heads

        initial = None if baseline is None else baseline.head
        head = task_heads.train_head(restored, videos, context.classes, initial=initial)
        logits, about["rounds"] = head.logits, head.rounds
    elif baseline is None:
        raise ValueError("Input features have no baseline's head: train one.")
    else:
        logits = baseline.logits
    return {
        "validation": task_metrics(logits, stored_validation),
        "training": task_metrics(logits, stored.sample(_TRAINING_SAMPLE)),
        **about,
    }


def _identity(scores: np.ndarray) -> np.ndarray:
    return scores


def _measure_new_tasks(context: Context, features: Callable[[LabelledVideos], np.ndarray]) -> dict[str, Any]:
    """Return the field of a record that says how heads for new tasks do on features, if they are measured.

    Args:
      context: The evaluation's.
      features: Returns what is stored and read back of videos.
    """
    tasks = context.new_tasks
    if tasks is None:
        return {}
    videos, validation = data.load_new_task_data(context, tasks)
    return {"new_tasks": measure_heads(features(videos), videos, features(validation), validation, tasks.num_new)}


def _read_back(model: FrozenModel, videos: LabelledVideos) -> np.ndarray:
    """Return what heads read of a network: its activations without a rate, or what is read back from a shard."""
    return stored_features(model, videos) if model.metadata["lmbda"] else _features(model, videos)


def _network_logits(model: FrozenModel) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that gives the logits of an input without rounding, for networks without a rate."""
    return lambda x: model.logits(model.bottleneck(x))


def _features(baseline: FrozenModel | None, videos: LabelledVideos) -> np.ndarray:
    """Return float32[num_videos, num_dims]: the activations of a baseline, or the input."""
    if baseline is None:
        return np.asarray(videos.x)
    return np.concatenate([baseline.bottleneck(videos.x[chunk]) for chunk in chunks(len(videos))])
