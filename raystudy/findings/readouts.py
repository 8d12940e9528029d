"""What fine-tuning changed in a network, unit by unit: one read-out an epoch, as plain data and as a line of a file.

What each number means, with its source, is said in `raystudy.finetune.readouts`, which computes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

Values = tuple[float | None, ...]
"""One value a unit; None where a unit has none."""

PER_UNIT = ("weight_change", "angle", "cka", "dead", "selectivity")
"""The read-outs that every unit has."""

START = 0
"""The epoch of the read-out of the weights that a trial starts from."""


@dataclass(frozen=True, slots=True)
class ReadOut:
    """The read-out of one epoch.

    Attributes:
        epoch: after which it was taken; 0 for the starting weights.
        units: the names of the backbone's units, from the input to the features.
        weight_change: of each unit the norm of what its weights moved by, over their norm at the start.
        angle: of each unit the angle between its scale-free weights and those at the start, in degrees.
        cka: of each unit the linear CKA of its output and that at the start, 0 to 1.
        cka_chance: what `cka` would be on average were the images of one side shuffled.
        dead: of each unit the share of output channels that hardly respond to any image.
        selectivity: of each unit how much the images that excite a channel most are of one class, 0 to 1.
        selectivity_chance: what a channel that ranks images by chance has on average.
        separability: mean silhouette of the features by class, -1 to 1.
        embedding: the features of each image on their two principal axes.
        explained: the shares of the features' variance along these axes.
        labels: the class of each image.
        top_images: how many images `selectivity` takes for a channel.
        dead_below: a channel is dead whose mean absolute response is at most this share of the unit's mean.
        seconds: what it took.
    """

    epoch: int
    units: tuple[str, ...]
    weight_change: Values
    angle: Values
    cka: Values
    cka_chance: Values
    dead: Values
    selectivity: Values
    selectivity_chance: float
    separability: float | None
    embedding: tuple[tuple[float, float], ...]
    explained: tuple[float, float]
    labels: tuple[int, ...]
    top_images: int
    dead_below: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ReadOut:
        """Return the read-out of plain data; entries that this version does not know are passed over.

        Raises:
            KeyError, TypeError: it is no read-out.
        """
        values: dict[str, Any] = {field.name: _frozen(data[field.name]) for field in fields(cls)}
        return cls(**values)

    def values(self, measure: str) -> Values:
        """Return the values of one of `PER_UNIT`, one a unit."""
        found: Values = getattr(self, measure)
        return found


def to_line(readout: ReadOut) -> str:
    """Return the line of a file that stands for a read-out, with its end."""
    return json.dumps(readout.to_dict(), allow_nan=False) + "\n"


def from_lines(lines: Iterable[str]) -> list[ReadOut]:
    """Return the read-outs of a file's lines by epoch.

    A line that a crash cut off is passed over; of an epoch that was measured twice, as after a resume, the last counts.
    """
    found: dict[int, ReadOut] = {}
    for line in lines:
        try:
            readout = ReadOut.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError):
            continue
        found[readout.epoch] = readout
    return [found[epoch] for epoch in sorted(found)]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
