import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from pliant.core import Config, Knob, Space
from pliant.report.contents import KNOWN, Candidate, Compared, Contents, letters, quantity, summarise
from pliant.report.page import page, pareto_chart, thinned

CLASSES = ("cat", "dog & <co>")


def candidate(name: str, accuracy: float, latency: float, *change: tuple[float, float]) -> Candidate:
    values = {"accuracy": accuracy, "latency_ms": latency, "flops": 1e6, "parameters": 1000.0}
    return Candidate(name, Config({"width:a": 8}), values, "width 50 %", accuracy - 0.01, (0.9, 0.8), change)


WHOLE = candidate("whole network", 0.98, 2.0)
CONTENTS = Contents(
    model="resnet",
    data="digits",
    task="classify",
    metric="accuracy",
    objectives=(KNOWN["accuracy"], KNOWN["latency_ms"]),
    front=(candidate("A", 0.9, 0.5, (-0.2, 0.01), (-0.05, 0.04)), candidate("B", 0.975, 1.0, (0.1, 0.01), (0.0, 0.0))),
    largest=WHOLE,
    trials=({"accuracy": 0.5, "latency_ms": 0.9}, {"accuracy": 0.9, "latency_ms": 0.5}),
    quality=(0.1, 0.4),
    metrics=(
        {"step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1, "seconds": 1.0, "cpu_seconds": 1.0},
        {"step": 2, "epoch": 0, "loss": 1.0, "lr": 0.1, "seconds": 2.0, "cpu_seconds": 2.0},
        {"step": 2, "epoch": 0, "loss": 1.5, "metric": "accuracy", "val": 0.6, "seconds": 2.0, "cpu_seconds": 2.0},
    ),
    look={
        "groups": [
            {"name": "width:a", "kind": "width", "units": 16, "parameters_share": 0.5, "flops_share": 0.4, "where": "a"}
        ],
        "depth": [{"name": "depth:b", "nodes": 9}],
        "rigid": [{"operator": "aten.roll", "module": "head", "line": "my.py:3", "reason": "no rule"}],
        "coverage": 0.9,
    },
    class_names=CLASSES,
    class_counts=(40, 36),
    space_size=4096,
    separate=(
        Compared("whole network", "everything", 0.97, 0.98, (-0.01, 0.002), 5, 30.4),
        Compared("A <b>", "width 50 %", 0.89, 0.88, (0.01, 0.02), 5, 10.2),
    ),
    conflict=(("whole network", (1.0, 0.62, float("nan"))), ("B", (0.62, 1.0, -0.3)), ("A", (float("nan"), -0.3, 1.0))),
    conditions=(("seed", "0"),),
)


class Checker(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing is left open."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_stands_alone() -> None:
    text = page(CONTENTS)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.addresses == []
    outside = [address for address in re.findall(r"https?://[^\"'<> ]+", text) if "www.w3.org" not in address]
    assert outside == []
    assert len(text) < 200_000


def test_names_are_escaped() -> None:
    text = page(replace(CONTENTS, model="<script>alert(1)</script>"))
    assert "<script>alert" not in text
    assert "dog &amp; &lt;co&gt;" in text


def test_losses_beyond_noise_are_coloured_and_others_are_not() -> None:
    text = page(CONTENTS)
    assert re.search(r'<td class="loss" style="--deep:\d+%">-20.0</td><td class="noise">-5.0</td>', text)
    assert re.search(r'<td class="gain" style="--deep:\d+%">\+10.0</td><td class="noise">0.0</td>', text)


def test_the_cheapest_that_is_nearly_as_good_is_told() -> None:
    assert "2.0×" in page(CONTENTS)  # B takes 1 ms where the whole network takes 2


def test_every_section_has_its_figures() -> None:
    text = page(CONTENTS)
    for heading in (
        "Pareto front",
        "What each sub-network loses",
        "Search",
        "Training",
        "Against separately trained networks",
        "Do the sizes",
        "What bends",
        "Conditions",
    ):
        assert f"<h2>{heading}" in text
    for figure in ("4096", "aten.roll", "my.py:3", "97.0 %", "90.0 %", "2 steps"):
        assert figure in text


def test_sizes_in_conflict_are_marked() -> None:
    text = page(CONTENTS)
    assert re.search(r'<tr><th scope="row" class="text">B</th><td class="gain" style="--deep:36%">0.62</td><td>', text)
    assert re.search(r'>A</th><td>–</td><td class="loss" style="--deep:20%">-0.30</td></tr>', text)


def test_what_was_not_measured_is_left_out() -> None:
    bare = replace(
        CONTENTS,
        front=(candidate("A", 0.9, 0.5),),
        largest=None,
        quality=(),
        metrics=(),
        look={},
        class_names=(),
        separate=(),
        conflict=(("A", (1.0,)),),
    )
    text = page(bare)
    for heading in ("What each sub-network loses", "Search", "Training", "Against", "Do the sizes", "What bends"):
        assert f"<h2>{heading}" not in text


def test_many_classes_show_those_that_lose_most() -> None:
    names = tuple(f"class{index}" for index in range(30))
    change = tuple((-index / 100, 0.0) for index in range(30))
    front = replace(CONTENTS.front[0], change=change, classes=(0.5,) * 30)
    whole = replace(WHOLE, classes=(0.5,) * 30)
    text = page(replace(CONTENTS, front=(front,), largest=whole, class_names=names, class_counts=(5,) * 30))
    assert "class29" in text
    assert "class10" in text
    assert "class9<" not in text


def test_the_pareto_chart_shows_dominated_points_once() -> None:
    chart = pareto_chart(CONTENTS)
    assert [(series.name, len(series.marks)) for series in chart.series] == [
        ("evaluated", 1),
        ("Pareto front", 2),
        ("whole network", 1),
    ]
    with pytest.raises(ValueError, match="two objectives"):
        pareto_chart(replace(CONTENTS, objectives=(KNOWN["accuracy"],)))


def test_thinned_averages_the_loss_and_keeps_the_end() -> None:
    rows = [{"step": index, "loss": float(index)} for index in range(10)]
    assert thinned(rows, most=5)[0] == {"step": 1, "loss": 0.5}
    assert thinned(rows, most=5)[-1] == {"step": 9, "loss": 8.5}
    assert thinned(rows, most=20) == rows


def test_summaries_tell_shares_and_spans() -> None:
    space = Space([Knob("width:a", (8, 16)), Knob("width:b", (4, 16)), Knob("depth:c", (False, True))])
    assert summarise(Config({"width:a": 8, "width:b": 16, "depth:c": False}), space) == "width 75 %, depth 0 of 1"
    assert summarise(space.largest(), space) == "everything"


def test_letters_go_on_after_z() -> None:
    assert [letters(index) for index in (0, 1, 25, 26, 27, 701, 702)] == ["A", "B", "Z", "AA", "AB", "ZZ", "AAA"]


def test_unknown_quantities_keep_their_name() -> None:
    assert quantity("energy_mj").label == "energy mj"
    assert quantity("auc", maximise=True).maximise


def test_separately_trained_networks_are_beside_the_family_with_their_cost() -> None:
    text = page(CONTENTS)
    assert "These 2 took 41 CPU s together, the whole family of 4096 took 2 CPU s." in text
    row = '<td>97.0 %</td><td>98.0 %</td><td class="loss" style="--deep:14%">-1.0</td><td>30</td></tr>'
    assert row in text
    assert '<td class="noise">+1.0</td><td>10</td>' in text
    assert "A &lt;b&gt;" in text
    other = replace(CONTENTS.separate[0], family=1.5, alone=1.25, change=(0.25, None))
    text = page(replace(CONTENTS, task="regress", metric="mse", separate=(other,), metrics=()))
    assert "<td>1.5</td><td>1.25</td><td>+0.25</td>" in text
    assert "It took 30 CPU s." in text
