"""serve-overhead: what HTTP adds to one small inference, one client, binary protocol.

Median over requests of the smallest network pinned, one row each, minus the median of the network's own time. The
client is a blocking socket, so that little of what is measured is the client's own.
"""

import asyncio
import socket
import time

from bench._common import Outcome, one_thread
from bench._serving import artifact, median_ms, opened, server
from pliant_runtime.serving.load import Client, body_of, discover
from pliant_runtime.serving.model import samples

REQUIRED = ("http_ms",)
SLO_S = 1.0


def run(requests: int = 4000) -> Outcome:
    """The row."""
    one_thread()
    path = artifact()
    model = opened(path, SLO_S)
    smallest = model.table.ladder[0]
    rows = [samples(model.family, 1)]
    own = []
    for _ in range(requests):
        begun = time.perf_counter()
        model.run(smallest, rows)
        own.append(time.perf_counter() - begun)
    with server(path, SLO_S) as (_, address):
        whole = _times(address, asyncio.run(_request(address, smallest)), requests)
    figures = {"http_ms": median_ms(whole) - median_ms(own), "whole_ms": median_ms(whole), "own_ms": median_ms(own)}
    return Outcome(figures, "one random image per request", [0], settings={"requests": requests})


async def _request(address: str, pin: int) -> bytes:
    """The bytes of one binary inference."""
    client = Client(address, connections=1)
    target = await discover(client)
    await client.close()
    body, headers = body_of(target, 1, pin=pin)
    told = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {target.path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def _times(address: str, request: bytes, count: int) -> list[float]:
    host, port = address.removeprefix("http://").split(":")
    found = []
    with socket.create_connection((host, int(port))) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            begun = time.perf_counter()
            line.sendall(request)
            reply = _reply(line)
            found.append(time.perf_counter() - begun)
            if not reply.startswith(b"HTTP/1.1 200 "):
                raise ConnectionError(f"refused: {reply[:300]!r}")
    return found


def _reply(line: socket.socket) -> bytes:
    found = line.recv(65536)
    while (end := found.find(b"\r\n\r\n")) < 0:
        found += _more(line)
    length = int(found.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    while len(found) < end + 4 + length:
        found += _more(line)
    return found


def _more(line: socket.socket) -> bytes:
    if not (found := line.recv(65536)):
        raise ConnectionError("the server closed the connection")
    return found
