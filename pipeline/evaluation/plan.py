"""The plan of an evaluation: from options to the points to measure."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from vidpress.pipeline.evaluation.kinds import Kind
from vidpress.pipeline.evaluation.points import (
    BASELINE,
    BASELINE_PLACEHOLDER,
    BASELINES_PLACEHOLDER,
    CodecPoint,
    ModelPoint,
    Point,
)

LMBDAS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005)

# Options of a network that the sweep sets; the first two name architectures, on videos and on images.
_ARCHITECTURES = ("hidden", "bottleneck")
_SWEPT = (*_ARCHITECTURES, "lmbda", "seed")


@dataclasses.dataclass(frozen=True)
class Plan:
    """All points of an evaluation.

    Attributes:
      baselines: Networks without a rate, which the others need.
      models: The methods' networks.
      rivals: The rivals, in tuples that are one task each.
    """

    baselines: list[ModelPoint]
    models: list[ModelPoint]
    rivals: list[tuple[CodecPoint, ...]]

    def all_tasks(self) -> Iterator[tuple[Point, ...]]:
        """Yield everything, the baselines first."""
        yield from self.baseline_tasks()
        yield from self.tasks()

    def baseline_tasks(self) -> Iterator[tuple[Point, ...]]:
        """Yield the tasks that come first."""
        return _by_training(self.baselines)

    def tasks(self) -> Iterator[tuple[Point, ...]]:
        """Yield the tasks that come after the baselines, in the order in which they begin."""
        yield from _by_training(self.models)
        yield from self.rivals


def _by_training(points: Sequence[ModelPoint]) -> Iterator[tuple[Point, ...]]:
    """Yield points that share a training run as one task: it must not run twice at the same time."""
    by_training: dict[str, list[Point]] = {}
    for point in points:
        by_training.setdefault(repr((point.network_options(), point.baseline, point.teachers)), []).append(point)
    yield from map(tuple, by_training.values())


def make_plan(kind: Kind, args: argparse.Namespace) -> Plan:
    """Return the points that options ask for.

    Args:
      kind: The kind of data.
      args: The values of the options of `add_sweep_options`, of `kind` and of the evaluation's parser.

    Raises:
      ValueError: If an option of a network is out of range, or a method or baseline cannot be used.
    """
    seeds = range(args.seed, args.seed + args.seeds)
    names = vars(_model_parser(kind).parse_args([]))
    common = {name: getattr(args, name) for name in names if name not in _SWEPT} | kind.fixed_options(args)

    def point(method: str, own: dict[str, Any], hidden: tuple[int, ...], lmbda: float, seed: int) -> ModelPoint:
        options = {**common, **own, "hidden": hidden, "lmbda": lmbda, "seed": seed}
        return ModelPoint(method, tuple(sorted(kind.complete_options(options).items())))

    given = kind.given_baselines(args)
    own = {**kind.baseline_options, **_parse_own("--baseline_options", args.baseline_options, kind)}
    if not own.keys() <= common.keys():
        raise ValueError(f"--baseline_options cannot have {' '.join(own.keys() - common.keys())}.")
    baselines: dict[tuple[tuple[int, ...], int], ModelPoint] = {}
    models = []
    for text in args.method or kind.methods:
        name, colon, options = text.partition(":")
        if not colon or not name.strip() or name.strip() == BASELINE:
            raise ValueError(f"--method {text!r} must be a name other than {BASELINE!r}, a colon, and options.")
        method = _parse_own(f"--method {name}", options, kind)
        sweep = {key: method.pop(key, getattr(args, key)) for key in ("lmbda", "headline_lmbda")}
        own_architectures = {key: method.pop(key) for key in _ARCHITECTURES if key in method}
        for hidden in kind.architectures(argparse.Namespace(**{**vars(args), **own_architectures})):
            for lmbda in sweep["lmbda"]:
                if not lmbda > 0:
                    raise ValueError(
                        f"--lmbda {lmbda} must be above 0: the baseline, without a rate, is always measured."
                    )
                headline = sweep["headline_lmbda"] is None or lmbda in sweep["headline_lmbda"]
                for seed in seeds if headline else seeds[:1]:
                    models.append(point(name.strip(), method, hidden, lmbda, seed))
    for hidden in dict.fromkeys(dict(model.options)["hidden"] for model in models):
        for seed in seeds[:1] if hidden in given else seeds:
            baseline = point(BASELINE, own, hidden, 0.0, seed)
            if _placeholder(baseline):
                raise ValueError(
                    f"{_placeholder(baseline)} cannot be in the options that baselines are trained with: see --method."
                )
            baselines[hidden, seed] = dataclasses.replace(
                baseline, baseline=given.get(hidden), trained_as=kind.trained_as(baseline)
            )
    unused = sorted(path for hidden, path in given.items() if (hidden, args.seed) not in baselines)
    if unused:
        raise ValueError(f"--baseline {unused[0]} has an architecture that --hidden does not name: add it there.")
    models = [_with_teachers(model, baselines) for model in models]
    sources = [point for (_, seed), point in baselines.items() if seed < args.seed + args.rival_seeds]
    rivals = list(kind.rivals(args, sources))
    return Plan(list(baselines.values()), models, rivals)


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


def _model_parser(kind: Kind) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        conflict_handler="resolve", allow_abbrev=False, add_help=False, exit_on_error=False
    )
    kind.add_network_options(parser)
    return parser


def _parse_own(option: str, text: str, kind: Kind) -> dict[str, Any]:
    """Return the options that are given in a method's text, without defaults.

    Raises:
      ValueError: If it gives options that a method cannot have.
    """
    parser = _model_parser(kind)
    add_sweep_options(parser)
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([]))))
    try:
        namespace, unknown = parser.parse_known_args(shlex.split(text))
    except argparse.ArgumentError as error:
        raise ValueError(f"{option}: {error}") from error
    own = {name: value for name, value in vars(namespace).items() if value is not None}
    unknown += ["--seed"] if "seed" in own else []
    if unknown:
        raise ValueError(
            f"{option} cannot have {' '.join(unknown)}: it can have the options that say what is trained and how, "
            "except --seed; see --help."
        )
    return own


def add_sweep_options(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Add the options of a curve, which can differ between methods."""
    group.add_argument("--lmbda", type=float, nargs="+", default=list(LMBDAS), help="cost of a bit, for each point")
    group.add_argument(
        "--headline_lmbda",
        type=float,
        nargs="+",
        metavar="LMBDA",
        help="the points that are trained with all --seeds; the others are trained with the first only (default: all)",
    )
