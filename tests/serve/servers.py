"""A server on a thread of this process, for tests whose clients block."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pliant_runtime import load
from pliant_runtime.serving.controller import Settings
from pliant_runtime.serving.http import Server
from pliant_runtime.serving.messages import Limits
from pliant_runtime.serving.metrics import Metrics
from pliant_runtime.serving.model import Model
from pliant_runtime.serving.service import Service
from pliant_runtime.serving.table import Table

# Tests must not depend on how busy the machine is, so times are written by hand and the promise is long.
TABLE = Table((1, 8), ((0.001, 0.004), (0.002, 0.008), (0.003, 0.012)), (0.7, 0.8, 0.9))


@contextmanager
def background(artifact: Path, *, slo_s: float = 30.0, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server on a thread of this process."""
    model = Model(load(artifact), TABLE)
    service = Service(artifact, model, Settings(slo_s=slo_s), metrics=Metrics(slo_s))
    server = Server(service, limits or Limits(body=100_000, rows=64), drain_s=0.0)
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(30)
