"""The model card of an artifact: what it is, what it was made from, and under which conditions it was measured."""

from collections.abc import Mapping
from typing import Any

_UNITS = {
    "latency_ms": "latency, ms",
    "latency_iqr_ms": "IQR, ms",
    "latency_min_ms": "fastest, ms",
    "accuracy": "accuracy",
    "parameters": "parameters",
    "flops": "FLOPs",
    "max_abs_error": "max error vs torch",
}


def markdown(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    lines = [f"# {card['name']}", "", card["what"], "", "## Sub-networks", "", *_table(card), "", "## Inputs", ""]
    lines += [f"- `{item['name']}`: {item['dtype']}{item['shape']}" for item in card["signature"]["inputs"]]
    raw = card["signature"]["preprocessing"]
    if raw is not None:
        scaling = f"divided by {raw['scale']:g}" + (", normalised per channel or feature" if raw["mean"] else "")
        lines.append(f"- raw samples: {raw['dtype']}{raw['shape']} (layout {raw['layout']}), {scaling} by the runtime")
    lines += ["", "## Data", ""]
    lines += [
        f"- {name}: {value}" for name, value in (card["data"] or {"none given": "accuracy was not measured"}).items()
    ]
    lines += ["", "## Measured", ""]
    lines += [f"- {name}: {value}" for name, value in card["conditions"].items()]
    if "layout" in card:
        lines += ["", "## Layout", "", f"- form: {card['layout']['form']}", f"- why: {card['layout']['why']}"]
    lines += ["", "## Size", "", *[f"- {name}: {value} bytes" for name, value in card["sizes"].items()]]
    lines += ["", "## Licence", "", card["licence"], ""]
    return "\n".join(lines)


def _table(card: Mapping[str, Any]) -> list[str]:
    entries = card["entries"]
    columns = [key for key in _UNITS if any(key in entry["measured"] for entry in entries)]
    columns += sorted({key for entry in entries for key in entry["measured"]} - set(columns) - {"max_rel_error"})
    head = ["entry", *[_UNITS.get(key, key) for key in columns], "config"]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for number, entry in enumerate(entries):
        figures = [_figure(entry["measured"].get(key)) for key in columns]
        config = ", ".join(f"{name}={value}" for name, value in entry["config"].items()) or "(the whole network)"
        rows.append(f"| {' | '.join([str(number), *figures, config])} |")
    return rows


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{int(value):,}" if value >= 1000 and value == int(value) else f"{value:.5g}"
