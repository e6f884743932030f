"""A position in the data as JSON: numbers only, about a kilobyte for each lane at most."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from typing import Any

from vlmkit.data.lanes import LaneState, Place, Waiting
from vlmkit.data.loader import LanePositions
from vlmkit.data.plan import Position


def position_to_json(position: Position | LanePositions) -> dict[str, Any]:
    """A position as plain values."""
    if isinstance(position, Position):
        return asdict(position)
    return {"lanes": {str(lane): _lane_to_json(state) for lane, state in sorted(position.lanes.items())}}


def position_from_json(value: Mapping[str, Any]) -> Position | LanePositions:
    """The position that was written.

    Raises:
        KeyError, TypeError, ValueError: It was not written by ``position_to_json``.
    """
    if "lanes" in value:
        return LanePositions({int(lane): _lane_from_json(state) for lane, state in value["lanes"].items()})
    return Position(int(value["epoch"]), int(value["packs"]), int(value["arrived"]), tuple(value["waiting"]))


def _lane_to_json(state: LaneState) -> dict[str, Any]:
    """Waiting samples by piece: [source, epoch, piece, age, row, age, row, …], the age counted from ``arrived``."""

    def piece_of(waiting: Waiting) -> tuple[int, int, int]:
        return waiting.source, waiting.place.epoch, waiting.place.piece

    pieces = []
    for (source, epoch, piece), group in groupby(sorted(state.waiting, key=piece_of), key=piece_of):
        ages_and_rows = [number for w in group for number in (state.arrived - w.number, w.place.row)]
        pieces.append([source, epoch, piece, *ages_and_rows])
    return {"following": [list(place) for place in state.following], "arrived": state.arrived, "waiting": pieces}


def _lane_from_json(value: Mapping[str, Any]) -> LaneState:
    arrived = int(value["arrived"])
    waiting = sorted(
        Waiting(arrived - age, source, Place(epoch, piece, row))
        for source, epoch, piece, *numbers in value["waiting"]
        for age, row in zip(numbers[::2], numbers[1::2], strict=True)
    )
    return LaneState(tuple(Place(*place) for place in value["following"]), arrived, tuple(waiting))
