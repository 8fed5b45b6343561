"""Where in the epochs of a data set reading is, as JSON values that outlive the process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from vidpress.model.reading.epoch_order import Deal

_VERSION = 1

Batch = TypeVar("Batch")


@dataclasses.dataclass
class Position:
    """Where in the epochs a reader is.

    Attributes:
      epoch: The epoch's number.
      rows: How many rows of its order all workers together have read.
    """

    epoch: int = 0
    rows: int = 0


def followed(batches: Iterable[tuple[Batch, int]], position: Position) -> Iterator[Batch]:
    """Yield batches, and let the position follow them.

    Args:
      batches: The batches, and after how many rows of the epoch's order the next ones begin.
      position: Where they begin.
    """
    for batch, position.rows in batches:
        yield batch


def to_state(position: Position, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a position; after all rows of an epoch, it is that of the next one.

    Args:
      position: The position.
      identity: What the order of an epoch follows from; `num_videos` among it.
    """
    return in_epoch(_begun(position, identity), identity)


def in_epoch(position: Position, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a position in its epoch; after all rows, what is left of it is nothing."""
    return {"version": _VERSION, **dataclasses.asdict(position), **identity}


def _begun(position: Position, identity: Mapping[str, Any]) -> Position:
    return position if position.rows < identity["num_videos"] else Position(position.epoch + 1)


def from_state(state: Mapping[str, Any], identity: Mapping[str, Any]) -> Position:
    """Return the position of a state.

    Raises:
      ValueError: If it is not the state of a data set with these videos in this order.
    """
    if state.get("version") != _VERSION:
        raise ValueError(
            f"The state has version {state.get('version')}; this vidpress reads {_VERSION}: use what `state_dict` of "
            "this version gave."
        )
    for name, value in identity.items():
        if state.get(name) != value:
            raise ValueError(
                f"The state is one of a data set with {name}={state.get(name)!r}, this one has {name}={value!r}: open "
                "the same videos with the same options."
            )
    for name, most in (("epoch", None), ("rows", identity["num_videos"])):
        value = state.get(name)
        if not isinstance(value, int) or value < 0 or (most is not None and value > most):
            raise ValueError(f"The state has {name}={value!r}: it is damaged.")
    names = ("num_read", "num_processes", "num_ranks", "batch_size") if state.get("num_read") else ()
    for name in names:
        value = state.get(name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"The state has {name}={value!r}: it is damaged.")
    return Position(state["epoch"], state["rows"])


def position_of(
    state: Mapping[str, Any], identity: Mapping[str, Any], drop_remainder: bool, *, keep_end: bool = False
) -> Position:
    """Return where all readers together are in a state, which may be that of a process of a loader.

    Args:
      state: The state.
      identity: As for `from_state`.
      drop_remainder: Whether the rows that do not fill a batch of each reader are left out.
      keep_end: Whether the end of an epoch stays that, and is not the beginning of the next one.

    Raises:
      ValueError: As `from_state`, or if it is the state of one of several processes.
    """
    position = from_state(state, identity)
    if num_read := state.get("num_read", 0):
        if state["num_processes"] > 1:
            raise ValueError(
                f"The state is that of one of {state['num_processes']} processes of a loader: use what "
                "`state_dict(num_batches)` of its data set gives."
            )
        deal = Deal(identity["num_videos"], position.rows, state["batch_size"], state["num_ranks"], drop_remainder)
        position = Position(position.epoch, deal.position(num_read))
    return position if keep_end else _begun(position, identity)
