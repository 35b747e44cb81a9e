"""How a trial ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pliant.core import Config
from pliant.search.front import Axis, Point

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"

Row = list[float]
"""Costs in the order of the objectives, smaller is better."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Args:
        config: which sub-network.
        status: `finished`, `stopped` (not promising on a rung) or `failed`.
        values: objective key to value: all of them if finished, those of the last rung if stopped, else none.
        spread: as in `Point`.
        rungs: objective values on each rung it stood on.
        problem: what failed, in one line.
        trace: where in the code; not kept in the journal.
        seconds: it took.
    """

    config: Config
    status: str
    values: dict[str, float] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    rungs: tuple[dict[str, float], ...] = ()
    problem: str = ""
    trace: str = ""
    seconds: float = 0.0

    @property
    def point(self) -> Point:
        """A finished trial as a point of the front."""
        return Point(self.config, self.values, self.spread)

    def costs(self, axes: Sequence[Axis]) -> Row | None:
        """What a searcher is told: None if it failed."""
        return None if self.status == FAILED else [axis.cost(self.values[axis.key]) for axis in axes]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse."""
        return {**vars(self), "config": dict(self.config), "rungs": list(self.rungs)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Outcome":
        """The inverse of `to_dict`."""
        return cls(**{**data, "config": Config(data["config"]), "rungs": tuple(data["rungs"])})
