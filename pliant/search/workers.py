"""Where trials are measured: here, in processes beside this one, or on a Ray cluster."""

import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from pliant.core import PliantError

Job = dict[str, Any]
Work = Callable[[Job], dict[str, Any]]
"""From the JSON data of a job to that of its outcome."""

DEATHS = 3
"""So often may a job's worker die before the job counts as failed."""


class Pool(Protocol):
    """Takes jobs, and gives their outcomes by number."""

    count: int
    """How many jobs are worked on at once."""

    def submit(self, number: int, job: Job) -> None:
        """Begin a job, or put it in the queue."""
        ...

    def take(self, number: int) -> dict[str, Any]:
        """The outcome of a job; waits for it."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class Here:
    """This process.

    Args:
        start: makes what does the work.
    """

    count = 1

    def __init__(self, start: Callable[[], Work]) -> None:
        self._work = start()
        self._jobs: dict[int, Job] = {}

    def submit(self, number: int, job: Job) -> None:
        """See `Pool`."""
        self._jobs[number] = job

    def take(self, number: int) -> dict[str, Any]:
        """See `Pool`."""
        return self._work(self._jobs.pop(number))

    def close(self) -> None:
        """See `Pool`."""


class _Worker:
    def __init__(self, start: Callable[[], Work], closing: Sequence[int]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(start, theirs, [self.pipe.fileno(), *closing]), daemon=True)
        self.process.start()
        theirs.close()
        self.job: tuple[int, Job] | None = None


def _serve(start: Callable[[], Work], pipe: Connection, closing: Sequence[int]) -> None:
    """The life of a worker: it ends when the other end of its pipe is gone, also because the driver was killed."""
    for descriptor in closing:  # copies of what belongs to the driver would outlive it here
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's matter
    torch.set_num_threads(1)  # threads do not survive a fork
    work = start()
    try:
        while True:
            number, job = pipe.recv()
            pipe.send((number, work(job)))
    except (EOFError, OSError):
        os._exit(0)  # no clean-up of what was copied from the driver


class Processes:
    """Processes beside this one, forked from it, so that networks and objectives need not be written out.

    A worker that dies, killed or out of memory, is replaced and its job begun again; every figure that it had measured
    is in the run's database. After `DEATHS` deaths over one job that one counts as failed.

    Args:
        start: makes what does the work, in each process anew.
        count: how many.
        closing: open files that processes must not keep open.

    Raises:
        PliantError: the system cannot fork.
    """

    def __init__(self, start: Callable[[], Work], count: int, *, closing: Sequence[int] = ()) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise PliantError("this system cannot fork processes", fix="search with workers=1 or workers='ray'")
        self.count, self._start, self._closing = count, start, list(closing)
        self._queue: deque[tuple[int, Job]] = deque()
        self._done: dict[int, dict[str, Any]] = {}
        self._deaths: dict[int, int] = {}
        self._workers: list[_Worker] = []

    def submit(self, number: int, job: Job) -> None:
        """See `Pool`."""
        self._queue.append((number, job))
        self._feed()

    def _feed(self) -> None:
        while self._queue:
            idle = next((worker for worker in self._workers if worker.job is None), None)
            if idle is None:
                if len(self._workers) >= self.count:
                    return
                idle = self._hire()
            idle.job = self._queue.popleft()
            try:
                idle.pipe.send(idle.job)
            except OSError:  # it died while idle
                self._bury(idle)

    def _hire(self) -> _Worker:
        worker = _Worker(self._start, [*self._closing, *(other.pipe.fileno() for other in self._workers)])
        self._workers.append(worker)
        return worker

    def take(self, number: int) -> dict[str, Any]:
        """See `Pool`."""
        while number not in self._done:
            pipes = {worker.pipe: worker for worker in self._workers if worker.job is not None}
            for pipe in wait(list(pipes)):
                worker = pipes[pipe]  # type: ignore[index]
                try:
                    done, outcome = worker.pipe.recv()
                    self._done[done], worker.job = outcome, None
                except (EOFError, OSError):
                    self._bury(worker)
            self._feed()
        return self._done.pop(number)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        if worker.job is None:
            return
        number, job = worker.job
        self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._deaths[number] < DEATHS:
            self._queue.appendleft(worker.job)
            return
        problem = f"the worker died {DEATHS} times over this sub-network (exit code {worker.process.exitcode})"
        self._done[number] = {**job["failed"], "problem": problem}

    def pids(self) -> list[int]:
        """Of the processes."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def close(self) -> None:
        """See `Pool`. What is being measured is given up."""
        for worker in self._workers:
            worker.process.terminate()
            worker.process.join()
            worker.pipe.close()
        self._workers.clear()


class OnRay:
    """A Ray cluster: the one this process is connected to, else one on this machine.

    Ray sends jobs elsewhere when a worker or its machine is lost. What is done is fetched as soon as it is, not when it
    is asked for, so that little is lost with this process.

    Args:
        start: makes what does the work; it travels to the machines, once.
        by_files: classes of which an object travels as what its `save` writes, because it cannot be pickled.

    Raises:
        PliantError: Ray is not installed.
    """

    def __init__(self, start: Callable[[], Work], *, by_files: Sequence[type] = ()) -> None:
        try:
            import ray
            import ray.util.serialization
        except ImportError as error:
            raise PliantError("searching on Ray needs Ray", fix='pip install "pliant[scale]"') from error
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            ray.init(log_to_driver=False, include_dashboard=False)
        for kind in by_files:
            ray.util.serialization.register_serializer(kind, serializer=_packed, deserializer=_unpacked)
        self.count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._start = ray.put(start)
        self._run = ray.remote(_on_ray).options(num_cpus=1, max_retries=DEATHS - 1)
        self._jobs: dict[int, tuple[Any, Job]] = {}
        self._done: dict[int, dict[str, Any]] = {}

    def submit(self, number: int, job: Job) -> None:
        """See `Pool`."""
        self._jobs[number] = self._run.remote(self._start, job), job

    def take(self, number: int) -> dict[str, Any]:
        """See `Pool`."""
        while number not in self._done:
            numbers = {reference: each for each, (reference, _) in self._jobs.items()}
            for reference in self._ray.wait(list(numbers), num_returns=1)[0]:
                self._done[numbers[reference]] = self.arrived(self._fetched(numbers[reference]))
        return self._done.pop(number)

    def arrived(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """What to keep of an outcome, called once for each, in the order in which they are done."""
        return outcome

    def _fetched(self, number: int) -> dict[str, Any]:
        reference, job = self._jobs.pop(number)
        try:
            outcome: dict[str, Any] = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            told = (str(error).splitlines() or [""])[0]
            return {**job["failed"], "problem": f"Ray lost this sub-network ({type(error).__name__}: {told})"}
        return outcome

    def close(self) -> None:
        """See `Pool`."""
        for reference, _ in self._jobs.values():
            self._ray.cancel(reference, force=True)
        if self._ours:
            self._ray.shutdown()


def _on_ray(start: Callable[[], Work], job: Job) -> dict[str, Any]:
    torch.set_num_threads(1)
    return start()(job)


def _packed(saved: Any) -> tuple[type, dict[str, bytes]]:
    """What the `save` of an object writes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        saved.save(Path(folder) / "saved")
        files = {path.name: path.read_bytes() for path in (Path(folder) / "saved").iterdir()}
    return type(saved), files


def _unpacked(sent: tuple[Any, dict[str, bytes]]) -> Any:
    kind, files = sent
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return kind.load(folder)
