"""What the search finds and how soon, for docs/search.md, from the rows that measure it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tools.markdown import NOT_YET, number, percent, table

Figures = Mapping[str, Any]
Told = tuple[str, Callable[[Figures, Figures], str], Callable[[Figures, Figures], str]]

_ROWS: tuple[tuple[str, *Told], ...] = (
    (
        "search-replay",
        "evaluations until what NSGA-II has after 500 is found",
        lambda ours, base: number(ours["evals_to_nsga2_500"]),
        lambda ours, base: "500",
    ),
    (
        "search-replay",
        "evaluations until what LINAS has after 250 is found",
        lambda ours, base: number(ours["evals_to_linas_250"]),
        lambda ours, base: "250",
    ),
    (
        "hw-aware-search",
        "share of all there is to find in a trained family, after 60 evaluations",
        lambda ours, base: percent(ours["hypervolume_share"]),
        lambda ours, base: ", ".join(
            f"{name} {percent(ours[f'{key}_hypervolume_share'])}"
            for key, name in (("linas", "LINAS"), ("nsga2", "NSGA-II"), ("random", "random"))
        ),
    ),
    (
        "deep-architect",
        "validation accuracy of the best of 252 architectures found with 30 trainings",
        lambda ours, base: f"{percent(ours['accuracy'])} (the best there is: {percent(ours['best_accuracy'])})",
        lambda ours, base: f"DeepArchitect's tree search {percent(base['accuracy'])}",
    ),
    (
        "search-predictor",
        "the ridge from 100 measurements: Kendall's tau, share that its 90 % intervals cover",
        lambda ours, base: f"{number(ours['tau_100'])}, {percent(ours['coverage_90'])}",
        lambda ours, base: f"scikit-learn's RidgeCV {number(base['tau_100'])}",
    ),
    (
        "onnx-net",
        "the text predictor in a space it has never seen: Kendall's tau",
        lambda ours, base: number(ours["tau"]),
        lambda ours, base: (
            f"FLOPs {number(base['tau'])}, parameters {number(ours['tau'] - ours['gain_over_parameters'])}"
        ),
    ),
    (
        "hardware-table",
        "latency predicted from a description: rank correlation, median error",
        lambda ours, base: f"{number(ours['rank_correlation'])}, {percent(ours['median_relative_error'])}",
        lambda ours, base: (
            f"in proportion to FLOPs {number(base['rank_correlation'])}, {percent(base['median_relative_error'])}"
        ),
    ),
    (
        "search-resume",
        "`kill -9` at random moments: evaluations lost, repeated",
        lambda ours, base: (
            f"{ours['kills']} kills: {number(ours['lost_evaluations'])}, {number(ours['repeated_evaluations'])}"
        ),
        lambda ours, base: "",
    ),
)


def measured(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One table: a question, what pliant measured, what others did in the same run, and the row.

    Args:
        results: the content of the result files by row.
    """
    return f"\n{table(['measured', 'pliant', 'others', 'row'], _lines(results))}\n"


def _lines(results: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for row, question, ours, others in _ROWS:
        data = results.get(row, {})
        figures, baseline = data.get("figures"), data.get("baseline") or {}
        told = [ours(figures, baseline), others(figures, baseline)] if figures else [NOT_YET, ""]
        yield [question, *told, f"`{row}`"]
