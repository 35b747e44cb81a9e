"""serve-overload: ten times what the largest network can do, for ten minutes, over HTTP.

What is let in must be answered within twice the promise, the rest be turned away, nothing crash, memory stay flat
(`memory_growth_mb`: mean of the last fifth over that of the second fifth, server processes together). Requests are four
times as large as in the other rows: client and server share two cores, and it is the networks that must be overloaded,
not the client that sends ten times as much as they take. The promise grows with them.
"""

import asyncio
from statistics import mean

from bench._common import Outcome, one_thread
from bench._serving import DATA, artifact, processes, promise_s, pss_mb, server
from pliant_runtime.serving.load import Client, discover, drive
from pliant_runtime.serving.trace import ANSWERED, FAILED, SHED, Phase, Sample

REQUIRED = ("accepted_within_2x_share", "memory_growth_mb", "shed_share", "crashes")
ROWS = 128
MOST_PER_S = 1000  # beyond this one client process cannot send on time


def run(seconds: float = 600.0) -> Outcome:
    """The row."""
    one_thread()
    path = artifact()
    slo_s = promise_s(path, ROWS)
    with server(path, slo_s) as (running, address):
        samples, memory, rate = asyncio.run(_overload(address, running.pid, seconds))
        crashes = int(running.poll() is not None)
    answered = [one for one in samples if one.outcome == ANSWERED]
    fifth = max(1, len(memory) // 5)
    figures = {
        "accepted_within_2x_share": mean(one.latency <= 2 * slo_s for one in answered) if answered else 0.0,
        "memory_growth_mb": mean(memory[-fifth:]) - mean(memory[fifth : 2 * fifth] or memory[:1]),
        "shed_share": mean(one.outcome == SHED for one in samples),
        "failed": sum(one.outcome == FAILED for one in samples),
        "answered_per_s": len(answered) / seconds,
        "crashes": crashes,
    }
    return Outcome(
        figures,
        DATA.replace("32", str(ROWS)),
        [0],
        settings={"rate": rate, "seconds": seconds, "memory_mb": memory[:: fifth or 1]},
    )


async def _overload(address: str, pid: int, seconds: float) -> tuple[list[Sample], list[float], float]:
    client = Client(address, connections=200)
    target = await discover(client)
    rate = min(MOST_PER_S, 10 * target.capacity(ROWS))
    memory: list[float] = []

    async def watch() -> None:
        while True:
            memory.append(sum(pss_mb(each) for each in processes(pid)))
            await asyncio.sleep(min(1.0, seconds / 20))

    watching = asyncio.create_task(watch())
    samples: list[Sample] = []
    part = min(10.0, seconds)
    for number in range(max(1, round(seconds / part))):
        samples += await drive(client, target, [Phase(rate, part)], rows=ROWS, seed=number, patience_s=10.0)
    watching.cancel()
    await client.close()
    return samples, memory, rate
