import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant import nets
from pliant.elastic import Elastic
from pliant.report import look_page, write_look
from pliant.report.look import _many


class Odd(nn.Module):
    """A layer that bends and a sort that nothing is known about, with a name that must be escaped."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        out: Tensor = self.second(torch.linalg.matrix_exp(self.mix(x).unsqueeze(1) * x.unsqueeze(2)).mean(1))
        return out


@pytest.fixture(scope="module")
def resnet() -> Elastic:
    return pliant.elastic(nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=8), torch.randn(2, 3, 8, 8))


@pytest.fixture(scope="module")
def page(resnet: Elastic) -> str:
    return look_page(resnet)


class Tags(HTMLParser):
    """Checks that what is opened is closed."""

    VOID = frozenset({"meta", "br", "path", "rect", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_stands_alone(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.seen.count("svg") == 1
    assert not re.search(r'(src|href)="', page)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_every_group_is_told_with_units_choices_and_shares(page: str, resnet: Elastic) -> None:
    report = resnet.report()
    rows = re.findall(r'<tr><th scope="row"><i class="wires chip".*?</tr>', page)
    assert len(rows) == len(report.groups)
    for row, group in zip(rows, report.groups, strict=True):
        assert f"<code>{group.name}</code>" in row
        assert f"<td>{group.units}</td>" in row
        assert " / ".join(map(str, group.choices)) in row
        assert f"{100 * group.parameters_share:.1f} %" in row
        assert all(f"<code>{place}</code>" in row for place in group.where)


def test_depth_coverage_and_cost_are_told(page: str, resnet: Elastic) -> None:
    report = resnet.report()
    assert all(
        f"<code>{name}</code></th><td>{nodes}</td><td>{count:,}</td>" in page for name, nodes, count in report.depth
    )
    assert f"{100 * report.coverage:.1f} %" in page
    for figure in (report.whole.flops, report.smallest.flops, report.whole.parameters, report.whole.bytes):
        assert f"{figure:,}" in page
    assert report.headline() in page


def test_colours_of_the_table_are_those_of_the_diagram(page: str) -> None:
    legend = re.findall(r'<path class="t(\d)" d="[^"]*"/><text[^>]*><tspan class="name">g(\d+)</tspan>', page)
    table = re.findall(r'background:var\(--wire(\d)\)"></i>g(\d+)<', page)
    assert legend
    assert set(legend) <= set(table)


def test_a_network_without_rigid_parts_says_so(page: str) -> None:
    assert "Nothing beyond the network" in page


def test_rigid_parts_have_operator_line_and_reason() -> None:
    family = pliant.elastic(Odd(), torch.randn(2, 6))
    page = look_page(family)
    report = family.report()
    assert report.rigid
    for item in report.rigid:
        assert f"<code>{item.operator}</code>" in page
    assert "test_look.py:" in page
    assert "keeps the size of " in page


def test_notes_are_told() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.inner(x)) if self.training else torch.tanh(self.inner(x))
            out: Tensor = self.outer(x)
            return out

    family = pliant.elastic(Sometimes(), torch.randn(2, 6))
    assert "<h2>Notes</h2>" in look_page(family)


def test_counts_of_any_size_are_readable() -> None:
    assert [_many(n) for n in (12, 67_100_000, 77 * 10**24, 4**900)] == ["12", "67.1M", "7.7·10²⁵", "7.1·10⁵⁴¹"]


def test_the_file_is_written_whole(resnet: Elastic, tmp_path: Path, page: str) -> None:
    path = write_look(resnet, tmp_path / "look.html")
    assert path.read_text() == page
    assert [file.name for file in tmp_path.iterdir()] == ["look.html"]
