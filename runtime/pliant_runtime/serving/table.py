"""How long every sub-network takes at every batch size, and the correction learnt while serving."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

GAIN = 0.05
"""A larger batch must make a row cheaper by this share to be worth its longer wait."""


@dataclass(frozen=True)
class Table:
    """Fastest times seen, per sub-network and number of rows.

    Args:
        rows: batch sizes, ascending, the first is 1.
        seconds: per sub-network one time per batch size; never falling along the batch sizes.
        quality: figure of merit per sub-network, higher is better.
        names: what each is called, for people.

    Raises:
        ValueError: sizes that do not match, or times that are not positive.
    """

    rows: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]
    quality: tuple[float, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0] != 1 or list(self.rows) != sorted(set(self.rows)):
            raise ValueError(f"batch sizes must ascend from 1, got {list(self.rows)}")
        if not self.seconds or any(len(line) != len(self.rows) for line in self.seconds):
            raise ValueError(f"every sub-network needs {len(self.rows)} times, got {[len(x) for x in self.seconds]}")
        if len(self.quality) != len(self.seconds):
            raise ValueError(f"{len(self.seconds)} sub-networks need as many qualities, got {len(self.quality)}")
        if any(not (math.isfinite(value) and value > 0) for line in self.seconds for value in line):
            raise ValueError("times must be positive numbers of seconds")

    @classmethod
    def monotone(cls, rows: Sequence[int], seconds: Sequence[Sequence[float]], *, quality: Sequence[float]) -> "Table":
        """A table whose times never fall as rows are added; a noisy measurement may have them fall."""
        # From the right: more rows contain fewer, so a time cannot exceed that of a larger batch.
        lines = []
        for line in seconds:
            risen = list(line)
            for place in range(len(risen) - 2, -1, -1):
                risen[place] = min(risen[place], risen[place + 1])
            lines.append(tuple(risen))
        return cls(tuple(rows), tuple(lines), tuple(quality))

    def __len__(self) -> int:
        return len(self.seconds)

    @cached_property
    def ladder(self) -> tuple[int, ...]:
        """The sub-networks worth choosing, cheap to dear: each is better than all cheaper ones."""
        order = sorted(range(len(self)), key=lambda k: (self.row_seconds(k), -self.quality[k]))
        kept: list[int] = []
        for number in order:
            if not kept or self.quality[number] > self.quality[kept[-1]]:
                kept.append(number)
        return tuple(kept)

    @cached_property
    def _best(self) -> tuple[int, ...]:
        found = []
        for line in self.seconds:
            cheapest = min(seconds / rows for rows, seconds in zip(self.rows, line, strict=True))
            pairs = zip(self.rows, line, strict=True)
            found.append(next(rows for rows, s in pairs if s / rows <= cheapest * (1 + GAIN)))
        return tuple(found)

    def batch_rows(self, number: int, most_seconds: float = math.inf) -> int:
        """Rows to put in one batch: the smallest size from which more rows gain little, within `most_seconds`."""
        fitting = [rows for rows in self.rows if self.cost(number, rows) <= most_seconds]
        return min(self._best[number], fitting[-1] if fitting else 1)

    def cost(self, number: int, rows: int) -> float:
        """Seconds of one batch: between measured sizes on the line through them, beyond the last in proportion."""
        line = self.seconds[number]
        if rows >= self.rows[-1]:
            return line[-1] * rows / self.rows[-1]
        right = bisect.bisect_left(self.rows, rows)
        if self.rows[right] == rows:
            return line[right]
        low, high = self.rows[right - 1], self.rows[right]
        return line[right - 1] + (line[right] - line[right - 1]) * (rows - low) / (high - low)

    def drain(self, number: int, rows: int, *, batch: int) -> float:
        """Seconds to work through `rows` in batches of `batch`."""
        full, rest = divmod(rows, batch)
        return full * self.cost(number, batch) + (self.cost(number, rest) if rest else 0.0)

    def row_seconds(self, number: int, most_seconds: float = math.inf) -> float:
        """Seconds per row where batches are as large as they should be: the inverse of the capacity."""
        rows = self.batch_rows(number, most_seconds)
        return self.cost(number, rows) / rows

    @property
    def dynamic_range(self) -> float:
        """Cost of the largest over cost of the smallest: the swing of load that choosing sizes can absorb."""
        costs = [self.row_seconds(number) for number in self.ladder]
        return costs[-1] / costs[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "rows": list(self.rows),
            "seconds": [list(line) for line in self.seconds],
            "quality": list(self.quality),
            "names": list(self.names),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Table":
        """The inverse of `to_dict`.

        Raises:
            ValueError: data that are no such table.
        """
        try:
            lines = tuple(tuple(float(value) for value in line) for line in data["seconds"])
            rows = tuple(int(value) for value in data["rows"])
            quality = tuple(float(value) for value in data["quality"])
            names = tuple(str(value) for value in data.get("names", ()))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no latency table ({type(error).__name__}: {error})") from error
        return cls(rows, lines, quality, names)


WINDOW_S, PRIOR_S, FREAK_S, DEVIATIONS = 1.0, 0.005, 0.1, 2.0


class Correction:
    """How far off the table is at the moment.

    `mean` is time taken over time expected, summed over the last second or so. It is not a mean of ratios: a machine
    that gives half of its time to others lets nineteen of twenty short batches through untouched and makes the
    twentieth take twenty times as long; what counts is the time that went by. Deviations are of the same kind: the
    slices of time that others take come one by one, so that the variance of a long wait grows with its length and
    its deviation with the root. (TCP's timer, RFC 6298, of which this is a cousin, has one packet to wait for.)

    What was learnt fades with the clock: a machine that was slow before a pause is taken to be as measured after it.
    """

    def __init__(self) -> None:
        self._taken = self._expected = self._squares = self._at = 0.0

    def observe(self, seconds: float, expected: float, now: float) -> None:
        """One batch took `seconds` instead of `expected` and ended `now`."""
        likely = self.mean * expected
        seconds = min(seconds, 4 * likely + FREAK_S)  # a machine that slept for a minute tells nothing
        kept = math.exp(-max(0.0, now - self._at) / WINDOW_S)
        self._at = max(now, self._at)
        self._squares = self._squares * kept + (seconds - likely) ** 2
        self._taken = self._taken * kept + seconds
        self._expected = self._expected * kept + expected

    @property
    def mean(self) -> float:
        """Factor for rates."""
        return (self._taken + PRIOR_S) / (self._expected + PRIOR_S)

    def cautious(self, seconds: float) -> float:
        """Time that work of so many seconds takes by all likelihood: the mean and two deviations."""
        return self.mean * seconds + DEVIATIONS * math.sqrt(self._squares / (self._expected + PRIOR_S) * seconds)
