"""The picture of a compiled network that decides."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant.cli import commands
from pliant.core import PliantError
from pliant.report import write_program_page
from pliant.report.program import measured, picture, program_page
from pliant.report.program_layout import placed
from pliant_runtime import load


class Loops(nn.Module):
    """A loop, and a way that rows rarely take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.head, self.other = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Scores and steps."""
        steps = 0
        while x.norm() > 1 and steps < 9:
            x = torch.tanh(self.step(x)) * 0.9
            steps += 1
        if x.sum() > 100:
            return self.other(x), steps
        return self.head(x), steps


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pliant.compile(Loops(), tmp_path_factory.mktemp("a") / "loops", example=torch.randn(20, 6) * 2)


class Tags(HTMLParser):
    """Fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_every_state_and_every_way(artifact: Path) -> None:
    page, program = program_page(artifact), load(artifact).program
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.seen.count("rect") == len(program.states)
    edges = sum(len(state.step.next.edges) for state in program.states if state.step)
    assert len(re.findall(r'class="edge', page)) == edges
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "src=" not in page


def test_shares_are_those_of_the_rows(artifact: Path) -> None:
    family = load(artifact)
    rows = [row[None].numpy() for row in torch.randn(30, 6) * 2]
    traffic = measured(family, rows)
    ways = [family.trace(row)[1] for row in rows]
    assert traffic.rows == 30
    assert traffic.edges == {edge: sum(way.count(edge) for way in ways) for edge in {e for way in ways for e in way}}
    visits = traffic.visits(family)
    assert sum(visits) == sum(len(way) + 1 for way in ways)
    drawn = picture(family, traffic)
    assert "visits a row" in drawn or "% of rows" in drawn
    assert drawn.count("<rect") == len(family.program.states)
    assert 'class="edge open"' in drawn  # nothing was forced here
    assert 'class="edge forced"' not in drawn


def test_boxes_do_not_overlap_and_loops_go_back(artifact: Path) -> None:
    spots, lines = placed(load(artifact))
    for one in spots:
        for other in spots:
            if one is not other and one.layer == other.layer:
                assert abs(one.x - other.x) >= (one.wide + other.wide) / 2
    backs = [line for line in lines if line.back]
    assert backs
    for line in lines:
        down = line.spots[-1].layer > line.spots[0].layer
        assert down != line.back


def test_time_and_coverage_of_the_compiler_are_stored(artifact: Path) -> None:
    family = load(artifact)
    stored = json.loads((artifact / "card.json").read_text())["program"]
    assert len(stored["micros"]) == len(family.program.states)
    assert all((micros > 0) == bool(s.graph) for micros, s in zip(stored["micros"], family.program.states, strict=True))
    assert sum(bool(done) for *_, done in stored["edges"]) == family.program.conditions["edges checked"]
    assert sum(bool(taken) for _, _, taken, _ in stored["edges"]) == family.program.conditions["edges taken by inputs"]


def test_the_command_writes_it_beside_the_artifact(artifact: Path) -> None:
    result = commands.report(artifact)
    assert result["report"] == str(artifact.with_name("loops.html"))
    assert Path(str(result["report"])).stat().st_size == result["bytes"]


def test_what_cannot_be_drawn_says_why(artifact: Path, tmp_path: Path) -> None:
    static = pliant.compile(nn.Linear(3, 2), tmp_path / "static", example=torch.randn(2, 3))
    with pytest.raises(PliantError, match="does not decide"):
        write_program_page(static)
    bare = tmp_path / "bare"
    shutil.copytree(artifact, bare)
    (bare / "weights.bin").write_bytes(b"")
    with pytest.raises(PliantError):
        write_program_page(bare)
