"""bignas: the sandwich rule with in-place distillation against random sampling of the plain supernet, at equal cost.

Fashion-MNIST with the residual network of `train-once`, and its six sizes. Both families cost the same CPU time (their
epochs follow from what a step of either costs, `cost_ratio` says how nearly), have the same two learning rates to
choose from, by the mean validation accuracy of the six picks over all three seeds. The rival draws every knob by
itself, one sub-network a step, labels only; `gain_on_uniform_draws_points` compares on six sub-networks drawn like
that. `gain_without_distillation_points` is the sandwich rule with labels for everybody, as `train-once` trains it.
"""

from dataclasses import replace

from bench import _families as families
from bench._common import Outcome, one_thread
from bench._contests import Duel, fought, measured
from bench.train_once import CONTESTS, SEEDS, SHARES, by_rate, by_size
from pliant.core import Config

REQUIRED = ("gain_points", "gain_low_points", "gain_high_points", "worst_gain_points", "cost_ratio")
PLAIN = "sandwich"
EPOCHS = CONTESTS["resnet"].family_epochs.get(PLAIN, 5)  # those of `train-once`, so that its families serve here, too
CONTEST = replace(CONTESTS["resnet"], family_epochs={PLAIN: EPOCHS})
DUEL = Duel(CONTEST.task, "bignas", "uniform", EPOCHS, CONTEST.rates, CONTEST.batch_size, CONTEST.precision)


def without_distillation(picks: list[Config]) -> tuple[list[float], float]:
    """Test accuracy by size of the sandwich rule with labels alone, and the CPU seconds of its trainings."""
    tried = by_rate(CONTEST, PLAIN, picks)
    best = families.best_rate(tried)
    jobs = [CONTEST.family(PLAIN, seed, best) for seed in SEEDS]
    spent = sum(families.cost(ask.job) for asks in tried.values() for ask in asks)
    return by_size(measured(jobs, picks)), spent


def run() -> Outcome:
    """The whole row."""
    one_thread()
    picks = families.picks(families.family(CONTEST.task), SHARES)
    found = fought(DUEL, picks, families.dataset(CONTEST.task))
    labels, cpu = without_distillation(picks)
    gaps = [families.gap(CONTEST.task, a, b) for a, b in zip(labels, found.rival.values(), strict=True)]
    figures = found.figures | {"gain_without_distillation_points": sum(gaps) / len(gaps)}
    told = "Fashion-MNIST, 10,000 training images"
    seconds = found.cpu_seconds + cpu
    return Outcome(figures, told, SEEDS, found.rival, cpu_seconds=seconds, settings=found.settings)
