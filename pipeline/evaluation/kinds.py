"""What the kinds of data have in common that can be evaluated: a kind says what is trained on it, and measures that."""

from __future__ import annotations

import abc
import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from vidpress.pipeline.evaluation.points import CodecPoint, Context, ModelPoint
from vidpress.pipeline.evaluation.rivals.codecs import Codec
from vidpress.pipeline.evaluation.rivals.registry import ACTIVATIONS, FEATURES, RIVALS, Sample
from vidpress.pipeline.evaluation.task import Task, task_of


class Data(Protocol):
    """Labelled examples."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What identifies them: `sha256`, and more for the page."""


class Vectors(NamedTuple):
    """What rivals are fitted to and measured on.

    Attributes:
      fitting: float32[num_examples, num_dims], of the training data.
      validation: float32[num_others, num_dims].
      measure_head: Takes a point and what was restored of both, and returns the metrics and other fields of its record.
      head: Kernel and bias of the head that reads them, if it is linear.
      measure_codec: Takes a codec, and returns the fields of the records of all its points; by default none.
    """

    fitting: np.ndarray
    validation: np.ndarray
    measure_head: Callable[[CodecPoint, np.ndarray, np.ndarray], dict[str, Any]]
    head: tuple[np.ndarray, np.ndarray] | None = None
    measure_codec: Callable[[Codec], dict[str, Any]] = lambda codec: {}


class Kind(abc.ABC):
    """A kind of data.

    Only the methods that measure import Keras.

    Attributes:
      methods: The methods, if `--method` is not given.
      needed_options: Options without which nothing can be measured.
    """

    methods: ClassVar[tuple[str, ...]]
    needed_options: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def about(self) -> dict[str, Any]:
        """Return what results.json says about the kind; from this, `task_of` knows what things are called."""

    @property
    def task(self) -> Task:
        """What things are called."""
        return task_of(self.about())

    @abc.abstractmethod
    def add_network_options(self, parser: argparse.ArgumentParser) -> None:
        """Add the options that say which network is trained and how: those that can differ between methods."""

    @abc.abstractmethod
    def add_options(
        self, files: argparse._ArgumentGroup, sweep: argparse._ArgumentGroup, rivals: argparse._ArgumentGroup
    ) -> None:
        """Add the options of a whole evaluation that other kinds do not have."""

    @abc.abstractmethod
    def complete_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Check that a network can be trained with the options of a point, and return them with what follows from them.

        Raises:
          ValueError: If not; the message names the option.
        """

    @property
    @abc.abstractmethod
    def baseline_options(self) -> dict[str, Any]:
        """The options in which baselines differ from the common ones."""

    @abc.abstractmethod
    def fixed_options(self, args: argparse.Namespace) -> dict[str, Any]:
        """Return the options of every point that no method can choose."""

    @abc.abstractmethod
    def architectures(self, args: argparse.Namespace) -> Sequence[tuple[int, ...]]:
        """Return the default architectures of methods: units of hidden layers, or the shape of what is coded."""

    @abc.abstractmethod
    def given_baselines(self, args: argparse.Namespace) -> dict[tuple[int, ...], str]:
        """Return the files of baselines that are not to be trained, by their architecture.

        Raises:
          ValueError: If one cannot be a baseline.
        """

    def check_given_models(self, points: Iterable[ModelPoint], context: Context) -> None:  # noqa: B027
        """Check models that points take from files, with what is known of the data: by default nothing.

        Raises:
          NewTaskError: If one has seen what must be new to it.
        """

    def trained_as(self, baseline: ModelPoint) -> ModelPoint | None:
        """Return the point whose training run a baseline uses, too, if it needs none of its own."""
        return None

    @abc.abstractmethod
    def rivals(self, args: argparse.Namespace, baselines: Sequence[ModelPoint]) -> Iterator[tuple[CodecPoint, ...]]:
        """Yield the rivals of each of these baselines; a tuple has one source, and is one task."""

    @abc.abstractmethod
    def context(self, args: argparse.Namespace, work_dir: str) -> Context:
        """Return what all points share, except the data's fingerprints.

        Raises:
          ValueError: If an option that says what the data are cannot be used.
        """

    def resolved(self, context: Context) -> Context:
        """Return the context with what follows from the training data."""
        return context

    @abc.abstractmethod
    def load_data(self, context: Context) -> tuple[Data, Data]:
        """Return the training and the validation data, read once in a process."""

    @abc.abstractmethod
    def measure_model(self, point: ModelPoint, context: Context) -> dict[str, Any]:
        """Train, freeze and measure a network, and return its record."""

    @abc.abstractmethod
    def vectors(self, source: ModelPoint | None, context: Context) -> Vectors:
        """Return a baseline's activations, or the input, and a function that measures a head on them."""

    def measure_rivals(
        self, points: Sequence[CodecPoint], context: Context
    ) -> Iterator[tuple[CodecPoint, dict[str, Any]]]:
        """Fit codecs, train heads and measure; yield the record of each point, codec by codec.

        Args:
          points: The points of one source, at least one.
          context: What all points share.
        """
        source = points[0].source
        z, z_validation, measure_head, head, measure_codec = self.vectors(source, context)
        sample = Sample(z, head)
        for method, size in dict.fromkeys((point.method, point.size) for point in points):
            start = time.monotonic()
            codec = RIVALS[method].fit(sample, size or 0)
            codes = codec.encode(z_validation)
            num_bytes = codec.num_bytes(codes) / len(z_validation)
            restored, restored_validation = codec.decode(codec.encode(z)), codec.decode(codes)
            fitted = round(time.monotonic() - start, 1)
            about: dict[str, Any] = {}
            if not RIVALS[method].gives_scores:
                variance = np.mean((z_validation - z.mean(0)) ** 2)
                error = np.mean((restored_validation - z_validation) ** 2)
                about["unexplained_variance"] = float(f"{error / variance:.4g}") if variance else None
            start = time.monotonic()
            about |= measure_codec(codec)
            of_codec = round(time.monotonic() - start, 1)
            for point in points:
                if (point.method, point.size) == (method, size):
                    start = time.monotonic()
                    measured = measure_head(point, restored, restored_validation)
                    record = {
                        "method": method,
                        "size": size,
                        "hidden": None if source is None else list(dict(source.options)["hidden"]),
                        "seed": None if source is None else dict(source.options)["seed"],
                        "source": FEATURES if source is None else ACTIVATIONS,
                        "head": point.head,
                        self.task.bytes_key: num_bytes,
                        **about,
                        **measured,
                        "seconds": {"fit": fitted, "measure": round(time.monotonic() - start + of_codec, 1)},
                    }
                    yield point, record
