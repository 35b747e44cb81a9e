"""What a report shows, as plain values: collected from a run folder, drawn by `pliant.report.page`."""

from dataclasses import dataclass, field
from typing import Any

from pliant.core import Config, Space
from pliant.report.search_history import SearchHistory


@dataclass(frozen=True)
class Quantity:
    """Something measured: its key in the values, its label with unit, and which direction is better."""

    key: str
    label: str
    maximise: bool
    share: bool = False


KNOWN = {
    "accuracy": Quantity("accuracy", "validation accuracy", True, share=True),
    "latency_ms": Quantity("latency_ms", "latency (ms)", False),
    "flops": Quantity("flops", "FLOPs per input", False),
    "parameters": Quantity("parameters", "parameters", False),
    "bytes": Quantity("bytes", "bytes", False),
}


def quantity(key: str, *, maximise: bool = False) -> Quantity:
    """The known quantity of that key, or a plain one."""
    return KNOWN.get(key, Quantity(key, key.replace("_", " "), maximise))


@dataclass(frozen=True)
class Candidate:
    """One sub-network: a letter, what it keeps, and what was measured.

    Args:
        name: short name, such as `A`; `largest` for the whole network.
        config: its configuration.
        values: objective values (measured on the validation split) and cost.
        summary: what it keeps, in words.
        test: the metric on the test split, where it was evaluated.
        classes: per class: share of right answers on the test split.
        change: per class: difference to the largest network and its standard error, both as shares.
        total: the same over all classes together.
    """

    name: str
    config: Config
    values: dict[str, float]
    summary: str
    test: float | None = None
    classes: tuple[float, ...] = ()
    change: tuple[tuple[float, float], ...] = ()
    total: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Compared:
    """A sub-network beside a network of its sizes that was trained alone.

    Args:
        name, summary: as for a `Candidate`.
        family, alone: the metric of either on the test split.
        change: what the family's lies above the other, and for classification its standard error, both as shares.
        epochs, cpu_seconds: of the training alone.
    """

    name: str
    summary: str
    family: float
    alone: float
    change: tuple[float, float | None]
    epochs: int
    cpu_seconds: float


@dataclass(frozen=True)
class Contents:
    """Everything on the page.

    Args:
        model, data, task, metric: what was trained on what.
        objectives: what was searched for; the first is drawn upwards, the second to the right.
        front: the Pareto front, cheapest first.
        largest: the whole network, or None where it was not evaluated.
        trials: objective values of every evaluated sub-network, in the order of the search.
        quality: hypervolume after every trial; empty where it cannot be computed.
        metrics: lines of metrics.jsonl.
        look: `Elastic.report().to_dict()`.
        class_names: names of the classes of `Candidate.classes`.
        class_counts: test samples per class.
        space_size: number of sub-networks.
        separate: sub-networks beside separately trained networks; empty where there are none.
        conflict: names of sub-networks, and by row and column the cosine between their gradients on shared weights.
        conditions: name and value of what was measured how.
        history: how the trials of the search ended and what predictors are worth; None where that is not known.
    """

    model: str
    data: str
    task: str
    metric: str
    objectives: tuple[Quantity, ...]
    front: tuple[Candidate, ...]
    largest: Candidate | None = None
    trials: tuple[dict[str, float], ...] = ()
    quality: tuple[float, ...] = ()
    metrics: tuple[dict[str, Any], ...] = ()
    look: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    space_size: int = 0
    separate: tuple[Compared, ...] = ()
    conflict: tuple[tuple[str, tuple[float, ...]], ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    history: SearchHistory | None = None


def summarise(config: Config, space: Space) -> str:
    """What a sub-network keeps, by kind of knob: `width 62 %, heads 50 %, depth 3 of 4`.

    Counted knobs give the mean share kept; depth knobs the number of kept spans.
    """
    shares: dict[str, list[float]] = {}
    flags: dict[str, list[bool]] = {}
    for knob in space:
        value, whole = config[knob.name], knob.choices[-1]
        if isinstance(whole, bool):
            flags.setdefault(knob.kind, []).append(bool(value))
        else:
            shares.setdefault(knob.kind, []).append(value / whole)
    if config == space.largest():
        return "everything"
    parts = [f"{kind} {100 * sum(kept) / len(kept):.0f} %" for kind, kept in shares.items()]
    parts += [f"{kind} {sum(kept)} of {len(kept)}" for kind, kept in flags.items()]
    return ", ".join(parts)


def letters(index: int) -> str:
    """A, B, ..., Z, AA, AB, ... for 0, 1, ..."""
    text = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        text = chr(ord("A") + digit) + text
    return text
