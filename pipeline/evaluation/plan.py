"""The plan of an evaluation: from options to the points that are to be measured."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vidpress.model.frozen.frozen_model import FrozenModel
from vidpress.model.training.options import PAPER as PAPERS_METHOD
from vidpress.pipeline.evaluation.points import (
    BASELINE,
    BASELINE_PLACEHOLDER,
    BASELINES_PLACEHOLDER,
    PAPER,
    CodecPoint,
    ModelPoint,
    Point,
)
from vidpress.pipeline.evaluation.rivals import ACTIVATIONS, FEATURES, Rival, fitted_to
from vidpress.pipeline.training.options import ModelOptions, add_model_options, default_values, sizes

LMBDAS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005)

# The paper learns from the labels, and codes with the trained prior's tables, one for all videos.
METHODS = ("vidpress:", f"{PAPER}: {' '.join(f'--{name} {value}' for name, value in PAPERS_METHOD.items())}")

# Options of `vidpress train` that the sweep sets.
_SWEPT = ("hidden", "lmbda", "seed")


@dataclasses.dataclass(frozen=True)
class Plan:
    """All points of an evaluation.

    Attributes:
      baselines: Networks without a rate, which the others need.
      models: The methods' networks.
      codecs: The rivals, those that share a process's work together.
    """

    baselines: list[ModelPoint]
    models: list[ModelPoint]
    codecs: list[tuple[CodecPoint, ...]]

    def all_tasks(self) -> Iterator[tuple[Point, ...]]:
        """Yield everything, the baselines first."""
        yield from ((point,) for point in self.baselines)
        yield from self.tasks()

    def tasks(self) -> Iterator[tuple[Point, ...]]:
        """Yield what is done after the baselines, in the order to begin it in.

        Points that share a training are one task: it must not go on twice at a time.
        """
        by_training: dict[str, list[Point]] = {}
        for point in self.models:
            by_training.setdefault(repr((point.network_options(), point.teachers)), []).append(point)
        yield from map(tuple, by_training.values())
        yield from self.codecs


@dataclasses.dataclass(frozen=True)
class Networks:
    """What kind of networks a plan is of.

    Attributes:
      add_options: Adds the options that say how one is trained.
      check_options: Raises ValueError where they are out of range.
      baseline_options: What baselines have otherwise than the options of all.
      methods: The methods if `--method` names none.
      codecs: Gives the rivals of the first baseline of each architecture.
      fixed: Options of every point that no method can choose.
      architectures: What is coded of each architecture: the hidden layers' units. Empty where --hidden says so.
    """

    add_options: Callable[[argparse.ArgumentParser], None]
    check_options: Callable[[dict[str, Any]], object]
    baseline_options: dict[str, Any]
    methods: tuple[str, ...]
    codecs: Callable[[argparse.Namespace, Sequence[ModelPoint]], Iterator[tuple[CodecPoint, ...]]]
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    architectures: tuple[tuple[int, ...], ...] = ()


def make_plan(args: argparse.Namespace, networks: Networks | None = None) -> Plan:
    """Return the points that options ask for, of networks on videos if no others are given.

    Raises:
      ValueError: If an option of a network is out of range, or a method or baseline is not to be used.
    """
    networks = networks or VIDEOS
    architectures = networks.architectures or args.hidden or [(2000,)]
    seeds = range(args.seed, args.seed + args.seeds)
    names = vars(_model_parser(networks).parse_args([]))
    common = {name: getattr(args, name) for name in names if name not in _SWEPT} | networks.fixed

    def point(method: str, own: dict[str, Any], hidden: tuple[int, ...], lmbda: float, seed: int) -> ModelPoint:
        options = {**common, **own, "hidden": hidden, "lmbda": lmbda, "seed": seed}
        networks.check_options(options)
        return ModelPoint(method, tuple(sorted(options.items())))

    given = _given_baselines(args.baseline or [])
    own = {**networks.baseline_options, **_parse_own("--baseline_options", args.baseline_options, networks)}
    if not own.keys() <= common.keys():
        raise ValueError(f"--baseline_options cannot have {' '.join(own.keys() - common.keys())}.")
    baselines: dict[tuple[tuple[int, ...], int], ModelPoint] = {}
    models = []
    for text in args.method or networks.methods:
        name, colon, options = text.partition(":")
        if not colon or not name.strip() or name.strip() == BASELINE:
            raise ValueError(f"--method {text!r} must be a name, not {BASELINE!r}, a colon, and options.")
        method = _parse_own(f"--method {name}", options, networks)
        sweep = {key: method.pop(key, getattr(args, key)) for key in ("lmbda", "headline_lmbda")}
        for hidden in method.pop("hidden", architectures):
            for lmbda in sweep["lmbda"]:
                if not lmbda > 0:
                    raise ValueError(f"--lmbda {lmbda} must be above 0: the baseline, without a rate, is always there.")
                headline = sweep["headline_lmbda"] is None or lmbda in sweep["headline_lmbda"]
                for seed in seeds if headline else seeds[:1]:
                    models.append(point(name.strip(), method, hidden, lmbda, seed))
    for hidden in dict.fromkeys(dict(model.options)["hidden"] for model in models):
        for seed in seeds[:1] if hidden in given else seeds:
            baseline = point(BASELINE, own, hidden, 0.0, seed)
            if _placeholder(baseline):
                raise ValueError(
                    f"{_placeholder(baseline)} cannot be in what baselines are trained with: see --method."
                )
            baselines[hidden, seed] = dataclasses.replace(baseline, baseline=given.get(hidden))
    unused = sorted(path for hidden, path in given.items() if (hidden, args.seed) not in baselines)
    if unused:
        raise ValueError(f"--baseline {unused[0]} has an architecture that --hidden does not name.")
    models = [_with_teachers(model, baselines) for model in models]
    first = [point for (_, seed), point in baselines.items() if seed == args.seed]
    codecs = [] if args.no_rivals else list(networks.codecs(args, first))
    return Plan(list(baselines.values()), models, codecs)


def _placeholder(model: ModelPoint) -> str | None:
    """Return the placeholder that is in a model's options, if there is one."""
    texts = [text for _, value in model.options for text in (value if isinstance(value, list) else [value])]
    if BASELINES_PLACEHOLDER in texts:
        return BASELINES_PLACEHOLDER
    return next(
        (BASELINE_PLACEHOLDER for text in texts if isinstance(text, str) and BASELINE_PLACEHOLDER in text), None
    )


def _with_teachers(model: ModelPoint, baselines: dict[tuple[tuple[int, ...], int], ModelPoint]) -> ModelPoint:
    placeholder = _placeholder(model)
    if placeholder is None:
        return model
    options = dict(model.options)
    teachers = {seed: point for (hidden, seed), point in baselines.items() if hidden == options["hidden"]}
    own = teachers.get(options["seed"]) or next(iter(teachers.values()))
    if placeholder == BASELINE_PLACEHOLDER:
        return dataclasses.replace(model, teachers=(own,))
    return dataclasses.replace(model, teachers=(own, *(point for point in teachers.values() if point != own)))


def _codecs(args: argparse.Namespace, first: Sequence[ModelPoint]) -> Iterator[tuple[CodecPoint, ...]]:
    """Yield the rivals: on the first baseline of each architecture, and on the input features."""
    for baseline in first:
        yield from _tasks(fitted_to(ACTIVATIONS), baseline, dict(baseline.options)["hidden"][-1])
    on_input = fitted_to(FEATURES)
    yield from _tasks(on_input, None, args.features.input_size)
    if not args.no_network_heads:
        for rival in on_input:
            for size in rival.settings(args.features.input_size) if rival.sizes else []:
                yield (CodecPoint(rival.name, size, None, "network", first[0].options),)


def _tasks(rivals: Sequence[Rival], source: ModelPoint | None, num_dims: int) -> Iterator[tuple[CodecPoint, ...]]:
    """Yield the points of rivals on one source: the paper's, those without a choice, and each other by itself."""

    def task(rivals: Sequence[Rival], heads: Sequence[str]) -> tuple[CodecPoint, ...]:
        settings = [(rival.name, size) for rival in rivals for size in rival.settings(num_dims)]
        return tuple(CodecPoint(name, size, source, head) for name, size in settings for head in heads)

    others = [rival for rival in rivals if not rival.paper]
    heads = ["logistic"] if source is None else ["baseline", "logistic"]
    tasks = [
        task([rival for rival in rivals if rival.paper], ["baseline"]),
        task([rival for rival in others if not rival.sizes], heads),
        *(task([rival], heads) for rival in others if rival.sizes),
    ]
    yield from filter(None, tasks)


VIDEOS = Networks(
    add_options=add_model_options,
    check_options=ModelOptions.of,
    baseline_options={
        "teacher": [],
        "lmbda_range": None,
        "tables": "empirical",
        "banks": 1,
        # What says nothing without a rate.
        **{name: default_values()[name] for name in ("prior_banks", "prior_learning_rate", "rounding_lmbda")},
    },
    methods=METHODS,
    codecs=_codecs,
)


def _model_parser(networks: Networks) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        conflict_handler="resolve", allow_abbrev=False, add_help=False, exit_on_error=False
    )
    networks.add_options(parser)
    return parser


def _parse_own(option: str, text: str, networks: Networks) -> dict[str, Any]:
    """Return the options in a method's text, and no defaults.

    Raises:
      ValueError: If there are others.
    """
    parser = _model_parser(networks)
    add_sweep_options(parser, hidden=not networks.architectures)
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([]))))
    try:
        namespace, unknown = parser.parse_known_args(shlex.split(text))
    except argparse.ArgumentError as error:
        raise ValueError(f"{option}: {error}") from error
    own = {name: value for name, value in vars(namespace).items() if value is not None}
    unknown += ["--seed"] if "seed" in own else []
    if unknown:
        raise ValueError(f"{option} cannot have {' '.join(unknown)}: options of `vidpress train` but --seed can.")
    return own


def _given_baselines(paths: Sequence[str]) -> dict[tuple[int, ...], str]:
    """Return the given models by their architecture.

    Raises:
      ValueError: If one cannot be a baseline.
    """
    given = {}
    for path in paths:
        model = FrozenModel.load(path)
        if model.metadata.get("lmbda") != 0 or model.head is None:
            raise ValueError(f"--baseline {path} must be a model with its task head that was trained with --lmbda 0.")
        given[tuple(kernel.shape[1] for kernel, _ in model.hidden)] = path
    return given


def add_sweep_options(group: argparse._ArgumentGroup | argparse.ArgumentParser, *, hidden: bool = True) -> None:
    """Add the options of a curve, which a method can have of its own; with or without `--hidden`."""
    if hidden:
        group.add_argument(
            "--hidden",
            type=sizes,
            action="append",
            default=None,
            help="units of the hidden layers; once for each architecture (default: 2000)",
        )
    group.add_argument("--lmbda", type=float, nargs="+", default=list(LMBDAS), help="what a bit costs, point by point")
    group.add_argument(
        "--headline_lmbda",
        type=float,
        nargs="+",
        metavar="LMBDA",
        help="the points that get all --seeds; the others get the first alone (default: all points)",
    )
