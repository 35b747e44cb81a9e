"""The diagram: repeats found, axes named, every step placed once inside the picture, one well-formed SVG."""

import re
import xml.etree.ElementTree as ET
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from pliant import nets
from pliant.diagram.circuit import Circuit, _reshaped
from pliant.diagram.diagram import FACTS, TONES, Diagram, diagram
from pliant.diagram.fold import Repeat, fold
from pliant.diagram.layout import END, START, Lanes, Measure, place, plan, stations_of
from pliant.graph import Graph, trace

SVG = "{http://www.w3.org/2000/svg}"


class Block(nn.Module):
    """A bottleneck as in ResNet-50, small."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.reduce, self.conv = nn.Conv2d(inputs, inner, 1), nn.Conv2d(inner, inner, 3, stride, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (inner, inner, outputs))
        self.expand = nn.Conv2d(inner, outputs, 1)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norms[0](self.reduce(x)))
        out = torch.relu(self.norms[1](self.conv(out)))
        return torch.relu(self.norms[2](self.expand(out)) + self.shortcut(x))


def deep() -> nn.Module:
    """The 50 layers of ResNet-50 with few channels."""
    blocks, inputs = [], 4
    for stage, count in enumerate((3, 4, 6, 3)):
        for number in range(count):
            blocks.append(Block(inputs, 4, 8 + 4 * stage, 2 if stage and not number else 1))
            inputs = 8 + 4 * stage
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5)
    )


@cache
def graph_of(name: str) -> Graph:
    image = torch.randn(2, 3, 8, 8)
    if name == "deep":
        return trace(deep(), image)
    if name == "gpt12":
        return trace(nets.gpt((6,), 9, dim=8, depth=12, heads=2), torch.zeros(2, 6, dtype=torch.int64))
    if name == "vit":
        return trace(nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=2, heads=4), image)
    if name == "lstm":
        return trace(nets.lstm((7, 6), 5, hidden=10), torch.randn(2, 7, 6))
    return trace(nets.mlp((12,), 5, hidden=(16, 12)), torch.randn(2, 12))


@cache
def drawn(name: str) -> Diagram:
    return diagram(graph_of(name), title=name)


def texts(found: Diagram) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(found.svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", ["mlp", "lstm", "vit", "gpt12", "deep"])
def test_every_drawn_step_is_one_mark_inside_the_picture(name: str) -> None:
    found = drawn(name)
    root = ET.fromstring(found.svg)
    width, height = (float(side) for side in root.attrib["viewBox"].split()[2:])
    marks = [g for g in root.iter(f"{SVG}g") if "mark" in g.attrib["class"] and g.find(f"{SVG}circle") is None]
    assert len(marks) == found.drawn
    assert all((mark.findtext(f"{SVG}title") or "").strip() for mark in marks)
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        assert min(w, h) > 0
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height
    assert not re.search(r"\b(nan|inf)\b", found.svg)


@pytest.mark.parametrize("name", ["gpt12", "deep"])
def test_deep_networks_fit_on_a_screen_and_a_half(name: str) -> None:
    root = ET.fromstring(drawn(name).svg)
    assert float(root.attrib["viewBox"].split()[3]) < 1400
    assert drawn(name).drawn < drawn(name).stations * 0.6


def test_the_repeats_of_a_transformer_are_its_layers() -> None:
    circuit = Circuit(graph_of("gpt12"))
    folded = fold(circuit)
    (repeat,) = folded.repeats
    assert repeat.count == 12
    assert {circuit.stations[i].module.split(".")[1] for i in repeat.body} == {"0"}
    assert "× 12blocks.0 … blocks.11" in texts(drawn("gpt12"))


def test_the_repeats_of_a_residual_network_are_its_blocks() -> None:
    repeats = fold(Circuit(graph_of("deep"))).repeats
    assert [repeat.count for repeat in sorted(repeats, key=lambda r: r.start)] == [2, 3, 5, 2]


def test_folding_keeps_what_runs() -> None:
    """Unfolded again, every station stands for one that computes the same from equally far back."""
    circuit = Circuit(graph_of("deep"))
    folded = fold(circuit)
    for index, stand_in in enumerate(folded.stand_in):
        assert circuit.text(index) == circuit.text(stand_in)
    assert sum(len(folded.alike(index)) for index in folded.kept) == len(circuit.stations)


class Branches(nn.Module):
    """Three equal branches side by side: no repeat, because none reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        found: Tensor = torch.cat([part(x) for part in self.parts], dim=1)
        return found


def test_parallel_branches_are_lanes_and_not_repeats() -> None:
    graph = trace(Branches(), torch.randn(2, 4))
    assert fold(Circuit(graph)).repeats == ()
    boxes = [r for r in ET.fromstring(diagram(graph).svg).iter(f"{SVG}rect") if r.attrib["class"] == "box"]
    assert len({(rect.attrib["x"], rect.attrib["y"]) for rect in boxes}) == 7
    columns = [rect.attrib["x"] for rect in boxes]
    assert max(columns.count(x) for x in columns) == 3


def test_axes_have_names() -> None:
    circuit = Circuit(graph_of("vit"))
    found = {" ".join(names) for names in circuit.names}
    assert "batch channel height width" in found
    assert "batch position channel" in found
    assert "batch head position dim" in found
    gpt = Circuit(graph_of("gpt12"))
    assert {"batch sequence", "batch sequence channel"} <= {" ".join(names) for names in gpt.names}


def test_an_operator_covers_the_axes_it_acts_on() -> None:
    circuit = Circuit(graph_of("vit"))
    by_label = {station.label[0]: station for station in circuit.stations if station.label}
    for label, acted, passed in (("conv", {1, 2, 3}, {0}), ("LN", {2}, {0, 1}), ("attention", {2, 3}, {0, 1})):
        assert by_label[label].enters == acted
        assert by_label[label].passes == {(axis, axis) for axis in passed}
    assert [s.label[0] for s in circuit.stations if s.look == "part"][:3] == ["query", "key", "value"]
    added = next(station for station in circuit.stations if station.constants == ("pos_embed",))
    assert added.enters == {1, 2}  # the same position vectors for every sample: broadcast along the batch


def test_elastic_axes_have_the_colour_of_their_group() -> None:
    graph, found = graph_of("gpt12"), drawn("gpt12")
    assert set(found.tones) == set(range(len(graph.groups)))
    assert set(found.tones.values()) <= set(range(TONES))
    heads = {found.tones[i] for i, group in enumerate(graph.groups) if group.kind == "heads"}
    assert len(heads) == 1  # twelve folded layers, one colour
    assert any("11 alike" in text for text in texts(found))


def test_residual_spans_are_loops_with_their_names() -> None:
    found = texts(drawn("gpt12"))
    assert "blocks.0.attn" in found
    assert "blocks.0.attn: may be left out" in drawn("gpt12").svg


def test_the_picture_says_what_it_is_and_follows_the_scheme() -> None:
    found = drawn("mlp")
    root = ET.fromstring(found.svg)
    assert root.findtext(f"{SVG}title") == "Circuit diagram of mlp"
    assert "7 steps" in (root.findtext(f"{SVG}desc") or "")
    assert all(word in found.svg for word in ("prefers-color-scheme:dark", "currentColor"))
    assert str(found) == found._repr_svg_() == found.svg
    assert "http" not in found.svg.replace("http://www.w3.org/2000/svg", "")


def test_the_same_network_gives_the_same_picture() -> None:
    assert diagram(graph_of("vit"), title="vit").svg == drawn("vit").svg


def test_a_picture_too_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 400"):
        diagram(graph_of("mlp"), width=10)


@pytest.mark.parametrize(
    ("before", "after", "pairs"),
    [
        ((2, 5, 48), (2, 5, 3, 4, 4), {(0, 0), (1, 1), (2, 2), (2, 3), (2, 4)}),
        ((7, 2, 16), (7, 8, 4), {(0, 0), (1, 1), (2, 1), (2, 2)}),
        ((2, 16, 1, 1), (2, 16), {(0, 0), (1, 1)}),
        ((2, 16), (2, 16, 1, 1), {(0, 0), (1, 1)}),
        ((2, 3, 4), (24,), {(0, 0), (1, 0), (2, 0)}),
    ],
)
def test_reshapes_are_read_by_their_factors(
    before: tuple[int, ...], after: tuple[int, ...], pairs: set[tuple[int, int]]
) -> None:
    assert _reshaped(before, after) == pairs


def test_a_plan_has_rows_lanes_and_loops() -> None:
    edges = [(START, 0), (0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (3, 5), (4, 5), (5, END)]
    planned = plan(range(6), edges)
    assert planned.items == [0, Lanes([[1], [2]]), 3, 4, 5]
    assert planned.loops == [(3, 5)]


class Projected(nn.Module):
    """Query, key and value by layers of their own, each bent into heads before they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.query = nn.Linear(8, 16), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        key, value = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in self.both(x).chunk(2, dim=2))
        query = self.query(x).unflatten(2, (2, 4)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def test_parts_are_called_what_attention_takes_them_for() -> None:
    circuit = Circuit(trace(Projected(), torch.randn(2, 5, 8)))
    assert [station.label for station in circuit.stations if station.look == "part"] == [("key",), ("value",)]


def test_only_what_acts_on_elements_alone_is_a_pill() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.linalg.matrix_exp(torch.tanh(x)) * 2
            return found

    looks = {s.label[0]: (s.look, sorted(s.enters)) for s in Circuit(trace(Mixed(), torch.randn(2, 3, 3))).stations}
    assert looks["tanh"] == ("pill", [0, 1, 2])
    assert looks["linalg matrix exp"] == ("box", [0, 1, 2])
    assert looks["× 2"][0] == "pill"


def test_what_is_not_built_of_branches_is_still_placed() -> None:
    edges = [(START, 0), (0, 1), (0, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 5), (4, 5), (5, END)]
    planned = plan(range(6), edges)
    assert sorted(stations_of(planned.items)) == list(range(6))
    assert planned.loops


def test_lanes_wider_than_a_line_follow_one_another() -> None:
    long = [*range(1, 21)], [*range(21, 41)]
    edges = [(START, 0), (0, 1), (0, 21), (20, 41), (40, 41), (41, END)]
    edges += [(i, i + 1) for part in long for i in part[:-1]]
    planned = plan(range(42), edges)
    score = place(planned, lambda station: Measure(40.0, 10.0, 3), 500.0, [Repeat(1, 4, 2).body])
    assert set(score.spots) == set(range(42))
    assert len(score.lines) > 3
    assert {(0, 21), (20, 41)} <= set(score.loops)
    assert all(block.width <= 500.0 for block in score.lines)
    assert all(spot.y == 0.0 for spot in score.spots.values())


def test_the_facts_name_the_paper() -> None:
    assert (FACTS.rows, FACTS.room, FACTS.year) == (("151",), "diagram", 2024)
    assert len(FACTS.deviations) >= 5
