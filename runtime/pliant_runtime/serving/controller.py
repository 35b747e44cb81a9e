"""Which sub-network answers the next batch, and which requests are let in: a pure object without clock or tasks.

The same object runs in the server and in the simulator. It keeps one queue, first come first served, and is told the
time with every call. For every batch it takes the largest sub-network that

1. drains everything queued in time: each request by `arrival + safety * promise - overhead`, and
2. sustains the arrival rate: rate * seconds per row <= `rho` of the lanes; one step larger as long as what ran lately
   leaves time for it.

A request is let in if the smallest sub-network finishes it, behind all that is queued, within `admit` of its promise.
What was let in is never dropped. Khare et al., "SuperServe"
(NSDI 2025), choose sizes of one supernet in the same spirit.
"""

import math
from collections import deque
from dataclasses import dataclass

from pliant_runtime.serving.policies import POLICIES as POLICIES
from pliant_runtime.serving.policies import Adaptive, Policy, View
from pliant_runtime.serving.policies import policy as policy
from pliant_runtime.serving.table import Correction, Table


@dataclass(frozen=True)
class Settings:
    """What is promised, and how carefully.

    Args:
        slo_s: promise: seconds from arrival to answer.
        safety: share of the promise that draining the queue may use.
        rho: share of the time that the arrival rate may keep a sub-network busy.
        admit: share of the promise within which the smallest must finish a request that is let in.
        up_hold_s: seconds that a larger sub-network must have been possible before it is taken; 0 is best under noise.
        rate_window_s: time constant of the arrival rate.
        overhead_s: seconds a request spends outside queue and network.
        lanes: batches that run at once.

    Raises:
        ValueError: a promise, share or count that makes no sense.
    """

    slo_s: float
    safety: float = 0.6
    rho: float = 0.95
    admit: float = 0.9
    up_hold_s: float = 0.0
    rate_window_s: float = 0.3
    overhead_s: float = 0.001
    lanes: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.slo_s) and self.slo_s > 0):
            raise ValueError(f"the promise must be a positive time, got {self.slo_s!r} s")
        for name in ("safety", "rho", "admit"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie above 0 and at most at 1, got {getattr(self, name)!r}")
        if self.up_hold_s < 0 or self.overhead_s < 0 or self.rate_window_s <= 0 or self.lanes < 1:
            raise ValueError("up_hold_s and overhead_s must not be negative, rate_window_s and lanes be positive")


@dataclass(frozen=True)
class Ticket:
    """A request that was let in: number, arrival, rows, promise in seconds, and the sub-network it insists on."""

    number: int
    arrived: float
    rows: int
    promise: float
    pin: int | None = None


@dataclass(frozen=True)
class Shed:
    """A request that was turned away.

    Args:
        retry_after: seconds after which trying again makes sense; None where it never will.
        reason: for the client.
    """

    retry_after: int | None
    reason: str


@dataclass(frozen=True)
class Work:
    """One batch to run: its number, the sub-network, the requests, and the seconds that the table expects."""

    number: int
    subnet: int
    tickets: tuple[Ticket, ...]
    expected: float

    @property
    def rows(self) -> int:
        """Rows of all requests."""
        return sum(ticket.rows for ticket in self.tickets)


class Controller:
    """One queue, the rule that empties it, and the door before it. Times are seconds of any one clock.

    Args:
        table: measured times.
        settings: what is promised.
        rule: which sub-network; the adaptive rule by default.
    """

    def __init__(self, table: Table, settings: Settings, rule: Policy | None = None) -> None:
        self.table, self.settings = table, settings
        self.rule = Adaptive() if rule is None else rule
        self.correction = Correction()
        self._queue: deque[Ticket] = deque()
        self._running: dict[int, tuple[Work, float]] = {}
        self._numbers = 0
        self._free_rows, self._pinned_seconds = 0, 0.0  # what waits, kept up to date so that the door is O(1)
        self._rate = self._rate_at = self._busy = self._busy_at = 0.0
        self._lags: deque[float] = deque([0.0] * 3, maxlen=3)
        self._alone = [table.batch_rows(number, settings.slo_s / 4) for number in range(len(table))]
        self._fit(1.0)

    def _fit(self, slow: float) -> None:
        """Sizes of batches on a machine that is `slow` times slower than measured."""
        # A batch longer than a quarter of the promise makes whoever comes next wait too long. A very slow machine keeps
        # an eighth of what was measured all the same: smaller batches would only make it slower.
        longest = self.settings.slo_s / 4 / min(2.0, max(1.0, slow))
        numbers = range(len(self.table))
        self._fitted = slow
        self._batch = [self.table.batch_rows(number, longest) for number in numbers]
        self._row_seconds = [self.table.cost(number, self._batch[number]) / self._batch[number] for number in numbers]

    # -- what goes in ------------------------------------------------------------------------------------------------

    def arrive(
        self, now: float, rows: int = 1, *, promise_s: float | None = None, pin: int | None = None
    ) -> Ticket | Shed:
        """A request comes: it is let in, or turned away at once.

        Args:
            now: the time.
            rows: samples in it.
            promise_s: an earlier deadline of its own, in seconds from now; never later than the server's.
            pin: the sub-network that must answer it.

        Raises:
            ValueError: no rows, a deadline that is not positive, or a sub-network that is not there.
        """
        if rows < 1:
            raise ValueError(f"a request has at least one row, got {rows}")
        if pin is not None and not 0 <= pin < len(self.table):
            raise ValueError(f"there are the sub-networks 0 to {len(self.table) - 1}, got {pin}")
        if promise_s is not None and not promise_s > 0:
            raise ValueError(f"a deadline must lie in the future, got {promise_s!r} s")
        self._count(now, rows)
        promise = self.settings.slo_s if promise_s is None else min(promise_s, self.settings.slo_s)
        shed = self._door(now, rows, promise, pin)
        if shed is not None:
            return shed
        self._numbers += 1
        ticket = Ticket(self._numbers, now, rows, promise, pin)
        self._queue.append(ticket)
        self._weigh(ticket, 1)
        return ticket

    def _door(self, now: float, rows: int, promise: float, pin: int | None) -> Shed | None:
        smallest = self.rule.admits_by(self.table)
        own = smallest if pin is None else pin
        alone = self._pinned(own, rows)
        allowed = self.settings.admit * promise
        if alone > allowed:
            told = f"{rows} rows take sub-network {own} {alone * 1e3:.3g} ms, the promise is {promise * 1e3:.3g} ms"
            return Shed(None, told)
        if not self._queue and not self._running and self.lag == 0.0:
            # Nothing to wait for. Without this rule a correction that once rose too far could never come down again.
            return None
        own_rows, own_seconds = (rows, 0.0) if pin is None else (0, alone)
        queued = self._pinned_seconds + own_seconds
        queued += self.table.drain(smallest, self._free_rows + own_rows, batch=self._batch[smallest])
        wait = (self._left(now) + self.correction.cautious(queued)) / self.settings.lanes + self._overhead
        if wait <= allowed:
            return None
        return Shed(
            max(1, math.ceil(wait)), f"the queue takes {wait * 1e3:.3g} ms, the promise is {promise * 1e3:.3g} ms"
        )

    def _weigh(self, ticket: Ticket, sign: int) -> None:
        if ticket.pin is None:
            self._free_rows += sign * ticket.rows
        else:
            self._pinned_seconds += sign * self._pinned(ticket.pin, ticket.rows)
        if not self._queue:
            self._pinned_seconds = 0.0  # sums of floats drift

    def _pinned(self, pin: int, rows: int) -> float:
        return self.table.drain(pin, rows, batch=self._alone[pin])

    def _count(self, now: float, rows: int) -> None:
        self._rate = self.rate(now) + rows / self.settings.rate_window_s
        self._rate_at = now

    def observe_lag(self, seconds: float) -> None:
        """How late the event loop woke up last; only lag that lasts three samples counts."""
        self._lags.append(seconds if seconds > 1e-3 else 0.0)

    # -- what comes out ----------------------------------------------------------------------------------------------

    def next_batch(self, now: float) -> Work | None:
        """The batch to start now; None where nothing waits or all lanes are busy. Follow with `done`."""
        if not self._queue or len(self._running) >= self.settings.lanes:
            return None
        pin = self._queue[0].pin
        subnet = self.rule.choose(View(now, self)) if pin is None else pin
        tickets: list[Ticket] = []
        rows, most = 0, self._batch[subnet]
        while self._queue and self._queue[0].pin == pin and (not tickets or rows + self._queue[0].rows <= most):
            ticket = self._queue.popleft()
            self._weigh(ticket, -1)
            tickets.append(ticket)
            rows += ticket.rows
        self._numbers += 1
        work = Work(self._numbers, subnet, tuple(tickets), self.table.cost(subnet, rows))
        self._running[work.number] = work, now
        self._busy = self._fading(self._busy, self._busy_at, now) + self._share(work.expected)
        self._busy_at = now
        return work

    def done(self, work: Work, seconds: float, *, learn: bool = True) -> None:
        """A batch has ended.

        Args:
            work: the batch.
            seconds: how long it held its lane, the way into a thread and out of it included.
            learn: whether that says anything about the table.
        """
        _, begun = self._running.pop(work.number)
        if not learn:
            return
        self.correction.observe(seconds, work.expected, begun + seconds)
        if not 0.9 < self.correction.mean / self._fitted < 1.1:
            self._fit(self.correction.mean)

    def keeps_up(self, number: int, now: float) -> bool:
        """Whether a sub-network sustains the arrival rate and drains the queue in time."""
        seconds = self.rate(now) * self._row_seconds[number] * self.correction.mean
        return seconds <= self.settings.rho * self.settings.lanes and self.drains(number, now)

    def spares(self, number: int, now: float) -> bool:
        """Whether what ran lately leaves time for the next request on a sub-network that cannot sustain the rate."""
        rows = self._queue[0].rows if self._queue else 1
        busy = self._fading(self._busy, self._busy_at, now) + self._share(self._row_seconds[number] * rows)
        return busy <= self.settings.rho * self.settings.lanes

    def drains(self, number: int, now: float) -> bool:
        """Whether a sub-network answers everything that waits in time."""
        settings, correction = self.settings, self.correction
        left, overhead = self._left(now), self._overhead

        def late(ticket: Ticket, pinned: float, free: int) -> bool:
            seconds = pinned + self.table.drain(number, free, batch=self._batch[number])
            ends = now + (left + correction.cautious(seconds)) / settings.lanes
            return ends > ticket.arrived + settings.safety * ticket.promise - overhead

        # The last one is late first in nearly all cases; asking it spares the walk through a long queue.
        if self._queue and late(self._queue[-1], self._pinned_seconds, self._free_rows):
            return False
        pinned, free = 0.0, 0
        for ticket in self._queue:
            if ticket.pin is None:
                free += ticket.rows
            else:
                pinned += self._pinned(ticket.pin, ticket.rows)
            if late(ticket, pinned, free):
                return False
        return True

    # -- what is known -----------------------------------------------------------------------------------------------

    def rate(self, now: float) -> float:
        """Rows per second that arrive, the refused ones too."""
        return self._fading(self._rate, self._rate_at, now)

    def _fading(self, value: float, at: float, now: float) -> float:
        return value * math.exp(-max(0.0, now - at) / self.settings.rate_window_s)

    def _share(self, seconds: float) -> float:
        """What work adds to the share of lanes that were busy within the window."""
        return seconds * self.correction.mean / self.settings.rate_window_s

    def _left(self, now: float) -> float:
        """Seconds until all that runs now has ended, added up."""
        mean = self.correction.mean
        return sum(max(0.0, work.expected * mean - (now - begun)) for work, begun in self._running.values())

    @property
    def lag(self) -> float:
        """Seconds that the event loop is behind, sustained over three samples."""
        return min(self._lags)

    @property
    def _overhead(self) -> float:
        return self.settings.overhead_s + self.lag

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return sum(ticket.rows for ticket in self._queue)

    @property
    def running(self) -> int:
        """Batches that run."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self._running
