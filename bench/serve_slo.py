"""serve-slo: a step of 0.5 / 3 / 0.5 times what the largest network can do, in this process and simulated.

The promise is 50 ms or six times the largest's time, whichever is longer. Beside the adaptive rule, on the same
arrivals: always the largest, always the smallest, round robin. `accuracy_gap_share` is where the mean accuracy of the
answers lies between the smallest's (0) and the largest's (1). The simulated machine is slower than its table by a third
on average, so that the largest does less there, and the load follows it.
"""

from bench._common import Outcome, one_thread
from bench._serving import DATA, ROWS, artifact, contest, in_process, opened, promise_s, told, unit
from pliant_runtime.serving.controller import POLICIES, Settings
from pliant_runtime.serving.simulate import BUSY, compared
from pliant_runtime.serving.trace import profile

REQUIRED = ("accepted_lost", "in_slo_share", "accuracy_gap_share", "largest_in_slo_share", "dynamic_range")


def run(seconds: float = 20.0) -> Outcome:
    """The row."""
    one_thread()
    path = artifact()
    slo_s = promise_s(path)
    model = opened(path, slo_s)
    rate = unit(model.table, slo_s)
    phases = profile("step", rate=rate, seconds=seconds)
    runs = {name: told(in_process(model, slo_s, name, phases), slo_s, model.table) for name in POLICIES}
    slower = profile("step", rate=rate / BUSY.slowdown, seconds=seconds)
    simulated = compared(model.table, Settings(slo_s=slo_s), slower, rows=ROWS, noise=BUSY)
    figures = contest(runs, "adaptive") | {"dynamic_range": model.table.dynamic_range, "slo_ms": slo_s * 1e3}
    figures |= {f"simulated_{name}": value for name, value in contest(simulated, "adaptive").items()}
    settings = {"runs": runs, "table": model.table.to_dict(), "phase_seconds": seconds}
    return Outcome(figures, DATA, [0], settings=settings)
