"""What training a family costs and gives, for docs/training.md, from the rows that measure it."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tools.markdown import NOT_YET, number, percent, table

Figures = Mapping[str, Any]


def measured(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Two tables: families against separate networks, and what every method adds."""
    told = {row: data.get("figures") or {} for row, data in results.items()}
    against = table(
        ["recipe", "task", "CPU time", "mean gap", "95 % interval", "worst size", "at equal CPU time"],
        _against_separate(told.get("train-once", {}), results.get("train-once", {})),
        right=5,
    )
    methods = table(["measured", "result", "row"], ([*line, f"`{row}`"] for row, *line in _methods(told)))
    return (
        f"\n{against}\nFamilies against separately trained networks of six sizes, three seeds. CPU time is that of the "
        "family over that of the largest network alone. Gaps are the family's quality minus theirs, in points of "
        "accuracy or nats a token; those of the last column are to networks trained so briefly that all six together "
        f"cost what the family costs.\n\n{methods}\n"
    )


def _against_separate(figures: Figures, data: Mapping[str, Any]) -> Iterator[list[str]]:
    found = [match.groups() for name in figures if (match := re.fullmatch(r"([a-z0-9]+)_(.+)_cost_ratio", name))]
    for task, recipe in sorted(found, key=lambda pair: pair[1]):
        own = f"{task}_{recipe}_"
        if task == "default" or f"{own}mean_gap" not in figures:
            continue
        unit = (data.get("settings") or {}).get(task, {}).get("unit", "")
        gap = {key: _signed(figures.get(f"{own}{key}")) for key in
               ("mean_gap", "mean_gap_low", "mean_gap_high", "worst_gap", "gap_at_equal_cost")}  # fmt: skip
        between = f"{gap['mean_gap_low']} to {gap['mean_gap_high']}"
        cost = f"{number(figures[f'{own}cost_ratio'])} times"
        yield [recipe, task, cost, f"{gap['mean_gap']} {unit}".strip(), between, gap["worst_gap"],
               gap["gap_at_equal_cost"]]  # fmt: skip
    if not found:
        yield ["all", "all", NOT_YET, "", "", "", ""]


def _methods(told: Mapping[str, Figures]) -> Iterator[tuple[str, str, str]]:
    """Row, what is measured, and the result in words."""
    one = told.get("onepass", {})
    tasks = [name.removesuffix("_cost_over_default") for name in one if name.endswith("_cost_over_default")]
    texts = [
        f"{_signed(one.get(f'{task}_gap_to_default_{unit}'))} {unit} at {number(one[f'{task}_cost_over_default'])} "
        f"times the cost ({task})"
        for task in tasks for unit in ("points", "nats") if f"{task}_gap_to_default_{unit}" in one
    ]  # fmt: skip
    yield "onepass", "one pass against the default recipe", "; ".join(texts) or NOT_YET
    kept = told.get("sortednet", {})
    yield "sortednet", "what sub-networks of the default recipe keep of the whole network's accuracy", (
        f"{number(kept['subnetworks'])} of them keep {percent(kept['kept_share'])} on average, "
        f"{percent(kept['worst_kept_share'])} at worst; the smallest has {percent(kept['smallest_flops_share'])} of "
        "the FLOPs" if kept else NOT_YET
    )  # fmt: skip
    for row, method in (
        ("bignas", "sandwich rule with in-place distillation"), ("ofa", "progressive shrinking")
    ):  # fmt: skip
        gain = told.get(row, {})
        yield row, f"{method} against random sampling of the plain supernet, same cost", (
            f"{_signed(gain['gain_points'])} points ({_signed(gain['gain_low_points'])} to "
            f"{_signed(gain['gain_high_points'])})" if gain else NOT_YET
        )  # fmt: skip


def _signed(value: object) -> str:
    return "" if not isinstance(value, int | float) else f"{value:+.3g}"
