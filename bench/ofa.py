"""ofa: progressive shrinking over kernels, depth and width against random sampling of the plain supernet, equal cost.

Fashion-MNIST. The residual network of `train-once` has no kernel above 3, so this row has a small mobile network of its
own (inverted residuals with 5x5 depthwise convolutions, `bench/_mobile.py`): kernels of 3 or 5 through trained
transform matrices, blocks that can be skipped, all widths in quarters. Both families cost the same CPU time (their
epochs follow from what a step of either costs, `cost_ratio` says how nearly), have the same two learning rates to
choose from, by the mean validation accuracy of six sub-networks picked from their sizes alone over all three seeds.
The rival draws every knob by itself, one sub-network a step, labels only; `gain_on_uniform_draws_points`
compares on six sub-networks drawn like that.
"""

from bench import _families as families
from bench._common import Outcome, one_thread
from bench._contests import Duel, drawn_picks, fought
from bench._families import Task
from bench.train_once import SEEDS, SHARES

REQUIRED = ("gain_points", "gain_low_points", "gain_high_points", "worst_gain_points", "cost_ratio")
DUEL = Duel(Task("fashion", (2, 2), 16, net="mobile"), "shrinking", "uniform", 10, (6e-3, 1.5e-2))


def run() -> Outcome:
    """The whole row."""
    one_thread()
    picks = drawn_picks(families.family(DUEL.task), SHARES)
    found = fought(DUEL, picks, families.dataset(DUEL.task))
    told = "Fashion-MNIST, 20,000 training images"
    seconds = found.cpu_seconds
    return Outcome(found.figures, told, SEEDS, found.rival, cpu_seconds=seconds, settings=found.settings)
