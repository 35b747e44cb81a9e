"""Front: what a search found, and how to choose from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pliant.core import Config, PliantError, read_json, write_json
from pliant.search.draw import html_of, table_of
from pliant.search.pareto import Array, hypervolume, nondominated

_VERSION = 1


@dataclass(frozen=True)
class Axis:
    """One objective of a front.

    Args:
        key: the name its values carry, with the unit where it has one: `accuracy`, `latency_ms`.
        maximise: whether larger is better.
        unit: for tables ("ms", ""), already part of nothing but the text.
        name: the objective that was asked for ("latency"); understood wherever `key` is.
    """

    key: str
    maximise: bool = False
    unit: str = ""
    name: str = ""

    def cost(self, value: float) -> float:
        """The value turned so that smaller is better."""
        return -value if self.maximise else value


@dataclass(frozen=True)
class Point:
    """One measured sub-network.

    Args:
        config: which one.
        values: objective key to value, in the unit of the key.
        spread: interquartile range of what was measured repeatedly (a latency), in the same unit.
        ties: keys in which a neighbour differs by less than the noise of the measurement: measured, but not ranked.
    """

    config: Config
    values: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=dict)
    ties: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse."""
        return {
            "config": dict(self.config),
            "values": dict(self.values),
            "spread": dict(self.spread),
            "ties": list(self.ties),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Point":
        """The inverse of `to_dict`."""
        return cls(Config(data["config"]), dict(data["values"]), dict(data["spread"]), tuple(data["ties"]))


class Front:
    """The points no other point beats in every objective, cheapest first, and all points they were chosen from.

    Args:
        points: measured points, dominated ones too; all stay in `trials` in this order.
        objectives: the axes; the first one is what `str` and the picture put first.

    Raises:
        ValueError: no objectives, two with one key, or a point that lacks a finite value of one.
    """

    def __init__(self, points: Sequence[Point], objectives: Sequence[Axis]) -> None:
        self.objectives = tuple(objectives)
        keys = [axis.key for axis in self.objectives]
        if not keys or len(set(keys)) != len(keys):
            raise ValueError(f"a front needs objectives with different names, got {keys}")
        for point in points:
            bad = [key for key in keys if not math.isfinite(point.values.get(key, math.nan))]
            if bad:
                raise ValueError(f"point {point.config.to_json()} has no finite value of {', '.join(bad)}")
        self.trials = tuple(points)
        costs = self._costs(self.trials)
        kept = [point for point, keep in zip(self.trials, nondominated(costs), strict=True) if keep]
        last = self.objectives[min(1, len(self.objectives) - 1)]
        self.points = tuple(sorted(kept, key=lambda point: (last.cost(point.values[last.key]), *_row(self, point))))

    def _costs(self, points: Sequence[Point]) -> Array:
        rows = [_row(self, point) for point in points]
        return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(self.objectives))

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __getitem__(self, index: int) -> Point:
        return self.points[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Front) and (self.objectives, self.trials) == (other.objectives, other.trials)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        keys = ", ".join(axis.key for axis in self.objectives)
        return f"Front({len(self)} of {len(self.trials)} points; {keys})"

    def __str__(self) -> str:
        return table_of(self.objectives, self.points, len(self.trials))

    def _repr_html_(self) -> str:
        return html_of(self.objectives, self.points, self.trials)

    def axis(self, name: str) -> Axis:
        """The objective called `name` (its key, such as `latency_ms`, or the name asked for, such as `latency`).

        Raises:
            ValueError: there is none; the message lists them.
        """
        for axis in self.objectives:
            if name in (axis.key, axis.name):
                return axis
        raise ValueError(f"no objective {name!r} in this front; it has {', '.join(a.key for a in self.objectives)}")

    def _limits(self, limits: Mapping[str, float]) -> list[tuple[Axis, float]]:
        for name, limit in limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float) or math.isnan(limit):
                raise TypeError(f"the limit of {name} must be a number, got {limit!r}")
        return [(self.axis(name), float(limit)) for name, limit in limits.items()]

    def within(self, **limits: float) -> "Front":
        """The part that keeps every limit; empty when nothing does.

        Args:
            **limits: objective name to its bound: an upper one where smaller is better, else a lower one.

        Raises:
            ValueError: a name that is no objective.
            TypeError: a limit that is no number.
        """
        bounds = self._limits(limits)
        return Front([point for point in self.trials if _fits(point, bounds)], self.objectives)

    def best(self, name: str | None = None, **limits: float) -> Point:
        """The best point by one objective among those that keep the limits; of equals the cheapest by the others.

        Args:
            name: which objective; by default the first.
            **limits: as for `within`.

        Raises:
            ValueError: an unknown name, or nothing keeps the limits; the message names the closest point.
            TypeError: a limit that is no number.
        """
        axis = self.objectives[0] if name is None else self.axis(name)
        bounds = self._limits(limits)
        fitting = [point for point in self.points if _fits(point, bounds)]
        if not fitting:
            raise ValueError(self._nothing_fits(bounds))
        return min(fitting, key=lambda point: (axis.cost(point.values[axis.key]), *_row(self, point)))

    def _nothing_fits(self, bounds: Sequence[tuple[Axis, float]]) -> str:
        if not self.points:
            return "the front is empty: relax the limits it was cut with"
        wanted = " and ".join(f"{axis.key} {'>=' if axis.maximise else '<='} {limit:g}" for axis, limit in bounds)
        spans = {axis.key: float(np.ptp([p.values[axis.key] for p in self.trials])) or 1.0 for axis, _ in bounds}

        def excess(point: Point) -> float:
            over = [(axis.cost(point.values[axis.key]) - axis.cost(limit)) / spans[axis.key] for axis, limit in bounds]
            return sum(max(0.0, value) for value in over)

        near = min(self.points, key=excess)
        values = ", ".join(f"{axis.key}={near.values[axis.key]:.6g}" for axis in self.objectives)
        return f"no point has {wanted}; the closest has {values}"

    def pick(self, n: int) -> "Front":
        """At most `n` points spread evenly over the second objective (the first where there is only one).

        Both ends are kept (the cheap end when `n` is 1). `trials` of the result are the picked points only.

        Raises:
            ValueError: `n` below 1.
        """
        if n < 1:
            raise ValueError(f"pick at least one point, got {n}")
        axis = self.objectives[min(1, len(self.objectives) - 1)]
        left = list(self.points)
        if len(left) <= n:
            return Front(left, self.objectives)
        chosen = []
        for target in np.linspace(left[0].values[axis.key], left[-1].values[axis.key], n):
            near = min(range(len(left)), key=lambda i, t=target: abs(left[i].values[axis.key] - t))  # type: ignore[misc]
            chosen.append(left.pop(near))
        return Front(chosen, self.objectives)

    def hypervolume(self, reference: Mapping[str, float] | None = None) -> float:
        """The volume of objective space that the front dominates, exact; units are the product of the objectives'.

        Args:
            reference: objective name to the worst value that still counts; by default the worst among the trials,
                so pass one to compare two searches.

        Raises:
            ValueError: a reference that does not name every objective.
        """
        if not self.trials:
            return 0.0
        if reference is None:
            corner = self._costs(self.trials).max(axis=0)
        else:
            given = {self.axis(name).key: float(value) for name, value in reference.items()}
            missing = [axis.key for axis in self.objectives if axis.key not in given]
            if missing:
                raise ValueError(f"the reference must name every objective, {', '.join(missing)} missing")
            corner = np.asarray([axis.cost(given[axis.key]) for axis in self.objectives])
        return hypervolume(self._costs(self.points), corner)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` is the inverse. `points` repeats the front itself for other readers."""
        axes = [{"key": a.key, "maximise": a.maximise, "unit": a.unit, "name": a.name} for a in self.objectives]
        return {
            "version": _VERSION,
            "objectives": axes,
            "points": [point.to_dict() for point in self.points],
            "trials": [point.to_dict() for point in self.trials],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Front":
        """The inverse of `to_dict`.

        Raises:
            PliantError: the data are no front of this version.
        """
        try:
            if data["version"] != _VERSION:
                raise PliantError(f"this front has version {data['version']!r}, this pliant reads {_VERSION}")
            axes = [Axis(a["key"], a["maximise"], a["unit"], a["name"]) for a in data["objectives"]]
            return cls([Point.from_dict(point) for point in data["trials"]], axes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PliantError(f"not a front ({type(error).__name__}: {error})", fix="search again") from error

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all; a folder gets `front.json` in it."""
        write_json(_file_of(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "Front":
        """The front in a file or in a run folder.

        Raises:
            PliantError: the file is missing or holds no front.
        """
        return cls.from_dict(read_json(_file_of(path)))


def _file_of(path: str | Path) -> Path:
    path = Path(path)
    return path / "front.json" if path.is_dir() else path


def _row(front: Front, point: Point) -> tuple[float, ...]:
    return tuple(axis.cost(point.values[axis.key]) for axis in front.objectives)


def _fits(point: Point, bounds: Sequence[tuple[Axis, float]]) -> bool:
    return all(axis.cost(point.values[axis.key]) <= axis.cost(limit) for axis, limit in bounds)
