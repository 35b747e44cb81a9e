"""The part between the protocol and the networks: queue, threads, reload. Lives in one event loop."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.serving.controller import Controller, Settings, Shed, Ticket, Work, policy
from pliant_runtime.serving.messages import Refusal
from pliant_runtime.serving.metrics import MOST_SUBNETS, Metrics
from pliant_runtime.serving.model import Model, open_model

Array = NDArray[Any]
Answer = tuple[list[Array], int]
Found = tuple[Sequence[list[Array] | Exception], bool]
TICK_S, WATCH_S = 0.05, 0.5
INLINE_S = 0.0002
"""A batch measured to be shorter runs in the event loop: handing it to a thread and back takes longer. How slow the
machine is at the moment must not count here: the hand-over is what a busy machine makes slow."""


def log(event: str, *, level: str = "info", **facts: Any) -> None:
    """One line of JSON on stderr, in one write: workers share it, and lines of two must not mix."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "level": level, "event": event, **facts}
    sys.stderr.write(json.dumps(line, default=str) + "\n")
    sys.stderr.flush()


class Engine:
    """One model with its queue and its threads.

    Args:
        model: what answers.
        settings: what is promised.
        name: of the policy.
        metrics: what is counted.
    """

    def __init__(self, model: Model, settings: Settings, name: str, metrics: Metrics) -> None:
        if len(model.table) > MOST_SUBNETS:
            raise ValueError(f"at most {MOST_SUBNETS} sub-networks can be served, the artifact has {len(model.table)}")
        self.model, self.metrics = model, metrics
        self.controller = Controller(model.table, settings, policy(name))
        self._pool = ThreadPoolExecutor(settings.lanes, thread_name_prefix="pliant-lane")
        self._waiting: dict[int, tuple[list[Array], asyncio.Future[Answer]]] = {}
        self._due = False

    def submit(self, arrays: list[Array], *, promise_s: float | None, pin: int | None) -> asyncio.Future[Answer]:
        """The answer to come.

        Raises:
            Refusal: 503, with Retry-After where trying again makes sense.
        """
        now = time.perf_counter()
        found = self.controller.arrive(now, len(arrays[0]), promise_s=promise_s, pin=pin)
        if isinstance(found, Shed):
            self.metrics.add("shed")
            after = {} if found.retry_after is None else {"Retry-After": str(found.retry_after)}
            raise Refusal(503, found.reason, after)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[found.number] = arrays, future
        if not self._due:  # after all requests that came in together were queued, so that they share a batch
            self._due = True
            asyncio.get_running_loop().call_soon(self._pump)
        return future

    def _pump(self) -> None:
        self._due = False
        loop = asyncio.get_running_loop()
        while (work := self.controller.next_batch(begun := time.perf_counter())) is not None:
            arrays = [self._waiting[ticket.number][0] for ticket in work.tickets]
            if work.expected < INLINE_S:
                self._end(work, begun, self._run(work.subnet, arrays))
                continue
            running = loop.run_in_executor(self._pool, self._run, work.subnet, arrays)
            running.add_done_callback(partial(self._ended, work, begun))

    def _run(self, subnet: int, requests: list[list[Array]]) -> Found:
        """In a thread: what every request gets, and whether the time it took says anything about the table."""
        try:
            return list(self.model.run(subnet, requests)), True
        except Exception as error:  # onnxruntime's errors share no base class; one bad input must not fail the others
            if len(requests) == 1:
                return [error], False
        return [self._run(subnet, [request])[0][0] for request in requests], False

    def _ended(self, work: Work, begun: float, done: asyncio.Future[Found]) -> None:
        self._end(work, begun, done.result())
        self._pump()

    def _end(self, work: Work, begun: float, outcome: Found) -> None:
        found, clean = outcome
        # The lane was taken all this time: on a busy machine a thread waits to begin, and the loop to hear of its end.
        self.controller.done(work, time.perf_counter() - begun, learn=clean)
        self.metrics.add("batches", work.subnet)
        self.metrics.add("rows", work.subnet, work.rows)
        for ticket, answer in zip(work.tickets, found, strict=True):
            self._finish(ticket, answer, work.subnet)

    def _finish(self, ticket: Ticket, outcome: list[Array] | Exception, subnet: int) -> None:
        future = self._waiting.pop(ticket.number)[1]
        if future.done():  # the client went away
            return
        if isinstance(outcome, Exception):
            told = (str(outcome).strip() or type(outcome).__name__).splitlines()
            future.set_exception(Refusal(400, f"the network refused this input: {told[0][:300]}"))
        else:
            future.set_result((outcome, subnet))

    async def close(self) -> None:
        """Wait for everything that was let in, then end the threads."""
        while not self.controller.idle:
            await asyncio.sleep(0.005)
        self._pool.shutdown(wait=False)


class Service:
    """The model that serves now, and what keeps it going.

    Args:
        path: the artifact, for reloads.
        model: the loaded artifact.
        settings: what is promised.
        metrics: what is counted.
        policy_name: which rule chooses sub-networks.
        threads: threads per network.
    """

    def __init__(
        self, path: Path, model: Model, settings: Settings, *, metrics: Metrics, policy_name: str = "adaptive",
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.path, self.settings, self.metrics = path, settings, metrics
        self._policy, self._threads = policy_name, threads
        self.engine = Engine(model, settings, policy_name, metrics)
        self.draining = False
        self.connections: Callable[[], int] = lambda: 0
        self._seen = metrics.generation
        self._lock = asyncio.Lock()
        self._old: set[asyncio.Task[None]] = set()

    @property
    def model(self) -> Model:
        """The model that serves now."""
        return self.engine.model

    async def infer(self, engine: Engine, arrays: list[Array], promise_s: float | None, pin: int | None) -> Answer:
        """Outputs, and the sub-network that made them.

        Raises:
            Refusal: 503 where they would be late, 400 where the network refuses the input.
        """
        return await engine.submit(arrays, promise_s=promise_s, pin=pin)

    async def reload(self) -> None:
        """Load the artifact again and answer with it from then on; what is queued is answered by the old one.

        Raises:
            Refusal: 400, the artifact on disk cannot be served; the old one goes on.
        """
        self._seen = self.metrics.next_generation()
        await self._swap()

    async def _swap(self) -> None:
        async with self._lock:
            begun = time.perf_counter()
            loading = asyncio.to_thread(
                open_model, self.path, slo_s=self.settings.slo_s, threads=self._threads, seconds=0.0
            )
            try:
                engine = Engine(await loading, self.settings, self._policy, self.metrics)
            except (ArtifactError, ValueError, OSError) as error:
                log("reload failed", level="error", reason=str(error))
                raise Refusal(400, f"the artifact cannot be served: {error}") from error
            old, self.engine = self.engine, engine
            task = asyncio.create_task(old.close())
            self._old.add(task)
            task.add_done_callback(self._old.discard)
            self.metrics.add("reloads")
            log("reloaded", version=engine.model.version, seconds=round(time.perf_counter() - begun, 3))

    async def watch(self) -> None:
        """For ever: measure the lag of the event loop, show gauges, follow the reloads of other processes."""
        next_look = 0.0
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            control = self.engine.controller
            control.observe_lag(now - due)
            self.metrics.show(
                queue_rows=control.queued_rows, running=control.running, correction=control.correction.mean,
                rate=control.rate(now), lag_seconds=control.lag, connections=self.connections(),
            )  # fmt: skip
            if now >= next_look:
                next_look = now + WATCH_S
                if self.metrics.generation != self._seen:
                    self._seen = self.metrics.generation
                    try:
                        await self._swap()
                    except Refusal:
                        continue  # logged where it happened; the old model goes on

    def stats(self) -> dict[str, Any]:
        """What the live page shows."""
        table, model = self.model.table, self.model
        seconds = self.settings.slo_s / 4
        return {
            "model": model.name, "version": model.version, "slo_s": self.settings.slo_s, "policy": self._policy,
            "quality": list(table.quality), "quality_name": model.quality, "ladder": list(table.ladder),
            "row_seconds": [table.row_seconds(n, seconds) for n in range(len(table))],
            "dynamic_range": table.dynamic_range, "lanes": self.settings.lanes, "table": table.to_dict(),
            "draining": self.draining, "monotonic_s": time.perf_counter(),
            "counters": self.metrics.snapshot(len(table)),
        }  # fmt: skip

    async def close(self) -> None:
        """Answer everything that was let in."""
        await self.engine.close()
        if self._old:
            await asyncio.gather(*self._old)
