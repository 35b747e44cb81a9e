"""hw-aware-search: our default search against random search and LINAS, on a real trained family measured whole.

The table is that of `search-front`: validation accuracy and FLOPs of every sub-network in a part of the space. All
contestants have the same number of evaluations; LINAS runs with the better of two population sizes, chosen on other
seeds than those that count. Gains are percentage points of the exact front's hypervolume, medians over seeds.
"""

from bench._common import Outcome, one_thread
from bench._exhaustive import Table, medians
from bench.search_front import EVALUATIONS, SETTINGS, family, whole
from pliant.search import Linas, Nsga2, Proposer, Random, Ridge

REQUIRED = ("gain_over_random", "gain_over_rival")
SEEDS = tuple(range(11))
TUNING_SEEDS = tuple(range(100, 105))
POPULATIONS = (10, 20)


def contest(
    table: Table,
    *,
    evaluations: int = EVALUATIONS,
    seeds: tuple[int, ...] = SEEDS,
    tuning: tuple[int, ...] = TUNING_SEEDS,
) -> tuple[dict[str, float], dict[str, float], int]:
    """Figures, baselines, and the population that LINAS runs with."""
    tried: dict[str, Proposer] = {str(size): Linas(population=size) for size in POPULATIONS}
    tuned = medians(table, tried, evaluations, seeds=tuning)
    population = int(max(tuned, key=lambda name: tuned[name]))
    contestants: dict[str, Proposer] = {
        "ours": Ridge(), "random": Random(), "linas": Linas(population=population),
        "nsga2": Nsga2(population=population),
    }  # fmt: skip
    shares = medians(table, contestants, evaluations, seeds=seeds)
    figures = {
        "gain_over_random": 100 * (shares["ours"] - shares["random"]),
        "gain_over_rival": 100 * (shares["ours"] - shares["linas"]),
        "hypervolume_share": shares["ours"],
    }
    return figures, {f"{name}_hypervolume_share": value for name, value in shares.items() if name != "ours"}, population


def run() -> Outcome:
    """The whole row."""
    one_thread()
    found = whole(family())
    figures, baseline, population = contest(found.table)
    settings = {**found.settings, "evaluations": EVALUATIONS, "linas_population": population}
    data = f"Fashion-MNIST ({family().task.data}), {SETTINGS.val_limit} validation images"
    return Outcome(figures | baseline, data, SEEDS, cpu_seconds=found.seconds, settings=settings)
