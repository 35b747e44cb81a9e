"""Processes: one that serves, or several forked from one that has loaded everything, watched and started again.

Forking after loading shares the memory of the weights, those that onnxruntime has rearranged included; that needs
networks of one thread, because threads do not survive a fork. With more threads each process loads for itself.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pliant_runtime.serving.controller import Settings
from pliant_runtime.serving.http import Server
from pliant_runtime.serving.messages import Limits
from pliant_runtime.serving.metrics import Metrics
from pliant_runtime.serving.model import Model, open_model
from pliant_runtime.serving.service import Service, log


@dataclass(frozen=True)
class Options:
    """How to serve.

    Args:
        artifact: folder of the artifact.
        settings: what is promised.
        host, port: where to listen; port 0 takes a free one.
        workers: processes.
        threads: threads per network.
        policy: rule that chooses sub-networks.
        limits: what one client may ask for.
        drain_s: seconds to go on serving after SIGTERM.
        name: of the model in addresses; the artifact's own by default.
    """

    artifact: Path
    settings: Settings
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int = 1
    policy: str = "adaptive"
    limits: Limits = field(default_factory=Limits)
    drain_s: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 256:
            raise ValueError(f"workers must lie from 1 to 256, got {self.workers}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"a port lies from 0 to 65535, got {self.port}")


def serve(options: Options, *, told: Callable[[str], None] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status.

    Args:
        options: how.
        told: is given the address once clients may connect.

    Raises:
        ArtifactError: the artifact is damaged.
        ValueError: the promise cannot be kept even by the smallest sub-network.
        OSError: the address is taken.
    """
    listening = _bound(options)
    metrics = Metrics(options.settings.slo_s, options.workers)
    model = _opened(options) if options.workers == 1 or options.threads == 1 else None
    host, port = listening.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    facts: dict[str, Any] = (
        {} if model is None else {"model": model.name, "version": model.version, "subnets": len(model.table)}
    )
    log("serving", address=address, workers=options.workers, slo_ms=options.settings.slo_s * 1e3, **facts)
    if told is not None:
        told(address)
    if options.workers == 1:
        return _work(options, model, listening, metrics, 0)
    return _Parent(options, model, listening, metrics).run()


def _bound(options: Options) -> socket.socket:
    kind = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(kind, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((options.host, options.port))
    listening.listen(1024)
    listening.setblocking(False)
    return listening


def _opened(options: Options) -> Model:
    model = open_model(options.artifact, slo_s=options.settings.slo_s, threads=options.threads)
    if options.name is not None:
        model.name = options.name
    return model


def _work(options: Options, model: Model | None, listening: socket.socket, metrics: Metrics, number: int) -> int:
    """Serve in this process."""
    metrics.as_worker(number)
    metrics.show(queue_rows=0, running=0, connections=0)  # a process killed before may have left its own
    found = _opened(options) if model is None else model
    service = Service(
        options.artifact, found, options.settings, metrics=metrics, policy_name=options.policy, threads=options.threads
    )
    Server(service, options.limits, drain_s=options.drain_s).run(sockets=[listening])
    log("stopped", pid=os.getpid())
    return 0


class _Parent:
    """Forks workers and starts those again that die."""

    def __init__(self, options: Options, model: Model | None, listening: socket.socket, metrics: Metrics) -> None:
        self._options, self._model, self._listening, self._metrics = options, model, listening, metrics
        self._workers: dict[int, tuple[int, float]] = {}
        self._stopping = False

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for worker in range(self._options.workers):
            self._start(worker)
        while self._workers:
            try:
                pid, status = os.waitpid(-1, 0)
            except ChildProcessError:
                break
            if pid in self._workers:
                self._died(pid, os.waitstatus_to_exitcode(status))
        log("stopped", pid=os.getpid())
        return 0

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)

    def _start(self, number: int) -> None:
        # A signal between fork and the bookkeeping would miss the new worker; it waits until that is done.
        signals = {signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        if self._stopping:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            return
        pid = os.fork()
        if pid == 0:
            self._child(number, signals)
        self._workers[pid] = number, time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        log("worker started", worker=number, pid=pid)

    def _child(self, number: int, signals: set[signal.Signals]) -> None:
        status = 1
        try:
            for each in signals:
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            status = _work(self._options, self._model, self._listening, self._metrics, number)
        except Exception as error:  # the child must never run on into the parent's code
            log("worker failed", level="error", worker=number, error=f"{type(error).__name__}: {error}")
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _died(self, pid: int, status: int) -> None:
        number, begun = self._workers.pop(pid)
        if self._stopping:
            return
        log("worker died", level="error", worker=number, pid=pid, status=status)
        self._metrics.add("restarts")
        if time.monotonic() - begun < 1.0:
            time.sleep(0.5)  # one that dies at once would otherwise fork without end
        self._start(number)
