"""serve-slo-http: the step of serve-slo over HTTP, server and client on the same machine.

Valid where a control run, the smallest network at 0.2 times the load, has 99.9 % within the promise
(`control_in_slo_share`): below that the machine itself is too busy.
"""

import asyncio
from typing import Any

from bench._common import Outcome, one_thread
from bench._serving import DATA, ROWS, artifact, contest, promise_s, server
from pliant_runtime.serving.load import RULES, Client, discover, drive
from pliant_runtime.serving.load import told as told_by_client
from pliant_runtime.serving.trace import Phase, profile

REQUIRED = ("accepted_lost", "in_slo_share", "accuracy_gap_share", "largest_in_slo_share", "control_in_slo_share")


def run(seconds: float = 20.0) -> Outcome:
    """The row."""
    one_thread()
    path = artifact()
    slo_s = promise_s(path)
    with server(path, slo_s) as (_, address):
        runs, control = asyncio.run(_runs(address, seconds))
    runs["adaptive"] = runs.pop("server")
    figures = contest(runs, "adaptive") | {
        "control_in_slo_share": control["in_slo_of_offered"] or 0.0,
        "slo_ms": slo_s * 1e3,
    }
    return Outcome(figures, DATA, [0], settings={"runs": runs, "control": control, "phase_seconds": seconds})


async def _runs(address: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    client = Client(address)
    target = await discover(client)
    rate = target.capacity(ROWS)
    phases = profile("step", rate=rate, seconds=seconds)
    quiet = [Phase(0.2 * rate, seconds)]
    control = told_by_client(await drive(client, target, quiet, rows=ROWS, rule="smallest"), quiet, target)
    runs = {}
    for rule in RULES:
        runs[rule] = told_by_client(await drive(client, target, phases, rows=ROWS, rule=rule), phases, target)
    await client.close()
    return runs, control
