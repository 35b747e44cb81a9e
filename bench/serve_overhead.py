"""serve-overhead: what HTTP adds to one small inference, one client, binary protocol.

Median over requests of the smallest network pinned, one row each, minus the median of the network's own time.
"""

import asyncio
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
        whole = asyncio.run(_requests(address, smallest, requests))
    figures = {"http_ms": median_ms(whole) - median_ms(own), "whole_ms": median_ms(whole), "own_ms": median_ms(own)}
    return Outcome(figures, "one random image per request", [0], settings={"requests": requests})


async def _requests(address: str, pin: int, count: int) -> list[float]:
    client = Client(address, connections=1)
    target = await discover(client)
    body, headers = body_of(target, 1, pin=pin)
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        reply = await client.call("POST", target.path, body, headers)
        found.append(time.perf_counter() - begun)
        if reply.status != 200:
            raise ConnectionError(f"status {reply.status}: {reply.body[:200]!r}")
    await client.close()
    return found
