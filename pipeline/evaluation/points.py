"""The points of an evaluation: what is measured, and the finished records of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from vidpress.model import strict_json
from vidpress.model.errors import VidpressError
from vidpress.model.features import FeatureSpec
from vidpress.model.files import storage
from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.strict_json import JsonError
from vidpress.model.training.options import FreezingOptions
from vidpress.pipeline.evaluation.new_tasks import NewTasks
from vidpress.pipeline.evaluation.task import Task
from vidpress.pipeline.training.options import default_values

# Records that another version of this module wrote are made again.
_VERSION = 1

# The fields that every record has; and more bytes than a file of an evaluation ever has.
_RECORD_FIELDS = ("method", "hidden", "validation", "training", "seconds")
_MAX_BYTES = 2**28

# In a method's options, these stand for the file of the frozen baseline of the same architecture and seed; and, in an
# option that takes several files, for those of all seeds.
BASELINE_PLACEHOLDER = "{baseline}"
BASELINES_PLACEHOLDER = "{baselines}"
# Names of methods: networks without a rate, and the method that others are compared with.
BASELINE = "baseline"
PAPER = "paper"

# Instead of a head, where what is restored are the scores of the classes.
NO_HEAD = "none"

# A record keeps the bits of at most this many dimensions.
_RANKS = 200

# Options that say how a training run is monitored, and options of the freezing that comes after it.
_WATCHING = ("checkpoint_every", "validate_every")
_FREEZING = tuple(field.name for field in dataclasses.fields(FreezingOptions))


class DamagedRecordError(VidpressError, ValueError):
    """A file of an evaluation that does not contain what was written to it."""


def read_fields(path: pathlib.Path, names: Collection[str]) -> dict[str, Any]:
    """Read a JSON object that an evaluation wrote.

    Raises:
      FileNotFoundError: If the file does not exist.
      DamagedRecordError: If it is not a JSON object, or lacks one of the named fields.
    """
    try:
        fields = strict_json.decode(storage.read_bytes(path), dict[str, Any], max_bytes=_MAX_BYTES)
        if missing := set(names) - set(fields):
            raise JsonError(f"it has no {min(missing)!r}")
    except JsonError as error:
        raise DamagedRecordError(
            f"{path} is damaged: {error}. Remove it, and run the same evaluation again: it makes what is missing."
        ) from error
    return fields


@dataclasses.dataclass(frozen=True)
class Context:
    """What all points of an evaluation share.

    Attributes:
      input: Globs of the training data.
      validation: Globs of the validation data.
      features: What `x` is made of; for images, their shape.
      classes: How many classes there are.
      output: Folder of the records.
      work_dir: Folder of the training runs and models.
      training_sha256: The SHA-256 in the training data's fingerprint.
      validation_sha256: The same of the validation data.
      held_out: For images: how many of the training images are measured instead of the test images.
      new_tasks: For videos: the classes that networks do not see, and the data to measure on, if given.
    """

    input: tuple[str, ...]
    validation: tuple[str, ...]
    features: FeatureSpec | str
    classes: int
    output: str
    work_dir: str
    training_sha256: str = ""
    validation_sha256: str = ""
    held_out: int = 0
    new_tasks: NewTasks | None = None

    @property
    def spec(self) -> FeatureSpec:
        """What `x` is made of, if the examples are videos."""
        if not isinstance(self.features, FeatureSpec):
            raise TypeError(f"{self.features} are images, which have no features.")
        return self.features

    def key(self, values: dict[str, Any]) -> str:
        """Return a hash of everything that determines a record."""
        everything = {
            **values,
            "version": _VERSION,
            "features": str(self.features),
            "classes": self.classes,
            "training_data": self.training_sha256,
            "validation_data": self.validation_sha256,
            **({} if self.new_tasks is None else {"new_tasks": self.new_tasks.key()}),
        }
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:12]

    def record_path(self, name: str) -> pathlib.Path:
        """Return where the record of a name is, once it is finished."""
        return pathlib.Path(self.output, "points", f"{name}.json")

    def load_record(self, name: str) -> dict[str, Any] | None:
        """Return a finished record, or None."""
        path = self.record_path(name)
        return read_fields(path, _RECORD_FIELDS) if path.exists() else None

    def save_record(self, name: str, record: dict[str, Any]) -> None:
        """Write a finished record; a reader sees all of it or nothing."""
        text = json.dumps({"name": name, **record}, allow_nan=False) + "\n"
        storage.write(self.record_path(name), text.encode())


@dataclasses.dataclass(frozen=True)
class ModelPoint:
    """A network that is trained, frozen and measured; without a rate it is a baseline.

    Attributes:
      method: Its name in the report.
      options: Names and values of the options of its kind's networks, sorted by name.
      baseline: The file of a frozen baseline to use instead of training one, if given.
      teachers: The baselines that placeholders in the options stand for: the one with the same seed first.
      trained_as: The point whose training run this one uses, too, if it has none of its own.
    """

    method: str
    options: tuple[tuple[str, Any], ...]
    baseline: str | None = None
    teachers: tuple[ModelPoint, ...] = ()
    trained_as: ModelPoint | None = None

    def name(self, context: Context) -> str:
        """Return the name of the record."""
        if self.baseline is not None:
            values: dict[str, Any] = {"baseline": _model_id(self.baseline)}
        else:
            values = {"options": _hashed(self.options, but=_WATCHING), "teachers": self._teacher_names(context)}
        return f"{slug(self.method)}-{self._label()}-{context.key({'kind': 'model', **values})}"

    def network_name(self, context: Context) -> str:
        """Return the name of the training run. Points that differ only in how they are frozen share it."""
        if self.trained_as is not None:
            return self.trained_as.network_name(context)
        values = {"kind": "network", "options": self.network_options(), "teachers": self._teacher_names(context)}
        return f"{self._label(dict(self.options).get('lmbda_range'))}-{context.key(values)}"

    def network_options(self) -> dict[str, Any]:
        """Return the options that say what is trained; with a range of lmbda, they do not depend on lmbda."""
        if self.trained_as is not None:
            return self.trained_as.network_options()
        swept = ("lmbda",) if dict(self.options).get("lmbda_range") else ()
        return _hashed(self.options, but=(*_WATCHING, *_FREEZING, *swept))

    def resolved_options(self, context: Context) -> dict[str, Any]:
        """Return the options with files in place of the placeholders."""
        paths = [teacher.model_path(context) for teacher in self.teachers]

        def resolved(value: Any) -> Any:
            if not paths:
                return value
            if isinstance(value, list):
                several = [paths if item == BASELINES_PLACEHOLDER else [resolved(item)] for item in value]
                return [item for items in several for item in items]
            return value.replace(BASELINE_PLACEHOLDER, paths[0]) if isinstance(value, str) else value

        return {name: resolved(value) for name, value in self.options}

    def _teacher_names(self, context: Context) -> list[str]:
        return [teacher.name(context) for teacher in self.teachers]

    def _label(self, lmbda_range: Sequence[float] | None = None) -> str:
        options = dict(self.options)
        lmbda = "to".join(f"{value:g}" for value in lmbda_range or (options["lmbda"],))
        return f"{'-'.join(map(str, options['hidden']))}-lmbda{lmbda}-seed{options['seed']}"

    def model_path(self, context: Context) -> str:
        """Return where the frozen model is, once it exists."""
        return self.baseline or os.path.join(context.work_dir, "models", f"{self.name(context)}.safetensors")

    def describe(self, task: Task) -> str:
        """Return what the progress lines call the point."""
        options = dict(self.options)
        network = task.network_name(options["hidden"])
        return f"{self.method}, {network}, lmbda {options['lmbda']:g}, seed {options['seed']}"

    def record(self, steps: int | None) -> dict[str, Any]:
        """Return the part of the record that says what was trained, and in how many steps."""
        options = dict(self.options)
        return {
            "method": self.method,
            "hidden": list(options["hidden"]),
            "source": None,
            "head": "own",
            "lmbda": options["lmbda"],
            "seed": options["seed"],
            "steps": steps,
            "options": {name: list(value) if isinstance(value, tuple) else value for name, value in self.options},
        }


@dataclasses.dataclass(frozen=True)
class CodecPoint:
    """A rival, fitted to activations of a baseline or to the input features, and the head that reads what it restores.

    Attributes:
      method: Its name in `rivals.RIVALS`.
      size: Bins, components or bytes, if the method has a choice of sizes.
      source: The baseline whose activations it is fitted to, or None for the input features.
      head: Which classifier reads it: "baseline" (the source's), "logistic" or "network", both trained on its
        reconstructions; or `NO_HEAD`, if these are scores.
      options: Options of the network, if that is the head.
    """

    method: str
    size: int | None
    source: ModelPoint | None
    head: str
    options: tuple[tuple[str, Any], ...] = ()

    def name(self, context: Context) -> str:
        """Return the name of the record."""
        source = "features" if self.source is None else self.source.name(context)
        values: dict[str, Any] = {
            "kind": "codec",
            "method": self.method,
            "size": self.size,
            "source": source,
            "head": self.head,
        }
        if self.options:
            values["options"] = _hashed(self.options, but=_WATCHING)
        of = "features" if self.source is None else "-".join(map(str, dict(self.source.options)["hidden"]))
        size = "" if self.size is None else f"-{self.size}"
        return f"{slug(self.method)}{size}-of-{of}-{self.head}-{context.key(values)}"

    def describe(self, task: Task) -> str:
        """Return what the progress lines call the point."""
        if self.source is None:
            of = "the input features"
        else:
            options = dict(self.source.options)
            of = f"the activations of the {task.network_name(options['hidden'])} of seed {options['seed']}"
        return f"{self.method}{'' if self.size is None else f' {self.size}'} of {of}, {self.head} head"


Point = ModelPoint | CodecPoint


def _hashed(options: Sequence[tuple[str, Any]], *, but: Collection[str]) -> dict[str, Any]:
    """Return the options that are part of a name: neither defaults nor those without a value.

    So an option that a later version adds does not change the names of old records.
    """
    defaults = default_values()
    return {
        name: value
        for name, value in options
        if name not in but and value is not None and (name not in defaults or value != defaults[name])
    }


@functools.lru_cache(maxsize=16)
def _model_id(path: str) -> str:
    return FrozenModel.load(path).model_id


def training_seconds(network_dir: str, seconds: float) -> float:
    """Return how long a training run took: what the run that finished it wrote down, or else `seconds`."""
    path = pathlib.Path(network_dir, "seconds.json")
    if not path.exists():
        path.write_text(json.dumps(round(seconds, 1)))
    return json.loads(path.read_text())


def by_rank(values: np.ndarray) -> list[list[float]]:
    """Return `[rank, value]` pairs, enough of them for a curve over the logarithm of the rank."""
    ranks = np.unique(np.rint(np.geomspace(1, len(values), _RANKS)).astype(int))
    return [[int(rank), float(f"{values[rank - 1]:.4g}")] for rank in ranks]


def slug(text: str) -> str:
    """Return a text in a form that can be part of a file's name."""
    return "".join(char if char.isalnum() or char in "+" else "_" for char in text)
