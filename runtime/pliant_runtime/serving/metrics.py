"""Counters that several processes share; `exposition` shows them to Prometheus.

Every process writes to its own row of one anonymous shared mapping; whoever is asked adds the rows up. A row outlives a
process that was killed, so counters never fall.
"""

import mmap
from typing import Any

import numpy as np

CODES = (200, 400, 404, 405, 408, 411, 413, 415, 431, 500, 501, 503, 505)
BUCKETS = tuple(0.00025 * 1.3**step for step in range(42))  # 0.25 ms to 12 s
MOST_SUBNETS = 256
COUNTERS = {
    "shed": "Inferences turned away because they would have been late.",
    "late": "Inferences answered later than promised.",
    "reloads": "Artifacts loaded while serving.",
    "restarts": "Processes started again after they had died.",
    "refused": "Connections turned away because there were too many.",
}
GAUGES = {
    "queue_rows": "Rows that wait.",
    "running": "Batches that run.",
    "correction": "Actual over measured time of a batch.",
    "rate": "Rows per second that arrive.",
    "lag_seconds": "How late the event loop wakes up.",
    "connections": "Open connections.",
}


class Metrics:
    """The counters of all processes of one server.

    Args:
        slo_s: the promise.
        workers: how many processes.
    """

    def __init__(self, slo_s: float, workers: int = 1) -> None:
        self.slo_s = slo_s
        self.edges = tuple(sorted({*BUCKETS, slo_s}))
        names: list[tuple[str, Any]] = [("code", code) for code in CODES]
        names += [("bucket", edge) for edge in (*self.edges, float("inf"))]
        names += [(kind, n) for kind in ("rows", "batches") for n in range(MOST_SUBNETS)]
        names += [(name, None) for name in ("latency_sum", *COUNTERS, *GAUGES)]
        self._place = {name: place for place, name in enumerate(names)}
        memory = mmap.mmap(-1, 8 * (len(names) * workers + 1))
        values = np.frombuffer(memory, dtype=np.float64)
        self._rows, self._generation = values[:-1].reshape(workers, len(names)), values[-1:]
        self._own = self._rows[0]
        self._edges = np.asarray(self.edges)

    def as_worker(self, number: int) -> None:
        """This process is worker `number` from now on."""
        self._own = self._rows[number]

    def add(self, name: str, label: Any = None, value: float = 1.0) -> None:
        """Raise a counter."""
        self._own[self._place[name, label]] += value

    def show(self, **values: float) -> None:
        """Set gauges."""
        for name, value in values.items():
            self._own[self._place[name, None]] = value

    def answered(self, code: int, seconds: float | None = None) -> None:
        """One request was answered; `seconds` where it was an inference that succeeded."""
        self.add("code", code if code in CODES else 500)
        if seconds is not None:
            place = int(np.searchsorted(self._edges, seconds))
            self.add("bucket", self.edges[place] if place < len(self.edges) else float("inf"))
            self.add("latency_sum", None, seconds)
            if seconds > self.slo_s:
                self.add("late")

    @property
    def generation(self) -> int:
        """How often a reload was asked for, by any process."""
        return int(self._generation[0])

    def next_generation(self) -> int:
        """Ask all processes to reload."""
        self._generation[0] += 1
        return self.generation

    def total(self, name: str, label: Any = None) -> float:
        """A counter or gauge over all processes."""
        return float(self._rows[:, self._place[name, label]].sum())

    def gauge(self, name: str) -> list[float]:
        """A gauge of every process."""
        return [float(value) for value in self._rows[:, self._place[name, None]]]

    def snapshot(self, subnets: int) -> dict[str, Any]:
        """Everything as JSON data; two of them give the figures of the time between."""
        edges = [*self.edges, None]
        return {
            "codes": {str(code): int(self.total("code", code)) for code in CODES},
            "latency": {"edges_s": edges, "counts": [int(self.total("bucket", e or float("inf"))) for e in edges]},
            "rows": [int(self.total("rows", n)) for n in range(subnets)],
            "batches": [int(self.total("batches", n)) for n in range(subnets)],
            **{name: int(self.total(name)) for name in COUNTERS},
            **{name: self.gauge(name) for name in GAUGES},
        }
