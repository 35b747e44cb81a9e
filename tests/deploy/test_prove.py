"""The proof itself: wrong wiring is seen on every edge, also on those that no row takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.deploy import compile, verify
from pliant.deploy.decide import Deciding, deciding
from pliant.deploy.program import write_program
from pliant.deploy.prove import Proof, _distances, _tours, prove, to_check
from pliant_runtime import ArtifactError, load
from pliant_runtime.grammar import digest_of


class Rare(nn.Module):
    """Its second way is one that no row takes; there two values of one shape and a number flow on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Scores and a number."""
        a, b = torch.tanh(self.one(x)), torch.tanh(self.two(x))
        way = 0
        if a.abs().sum() > 1e6:
            way = 7
        if b.sum() > 0.1:
            a = a - 2 * b
            way = way + 1
        return self.head(a - b), way


class Normed(nn.Module):
    """A BatchNorm on a way that no row takes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Sums."""
        x = self.conv(x)
        if x.abs().max() > 1e5:
            x = self.norm(x)
        return x.sum((2, 3))


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Deciding, nn.Module]:
    net = Rare().eval()
    out = compile(net, tmp_path_factory.mktemp("a") / "rare", example=torch.randn(8, 6))
    return out, deciding(net, torch.randn(2, 6)), net


def rows(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 6, generator=generator) for _ in range(count)]


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an artifact with another program, its hashes made right again."""
    shutil.copytree(folder, to)
    program = json.loads((to / "program.json").read_text())
    change(program)
    write_program(program, to)
    assert digest_of(json.loads((to / "program.json").read_text()))
    return to


def untaken(folder: Path) -> list[tuple[int, str]]:
    """The sides of `if`s that the rows below do not take."""
    family = load(folder)
    taken = {edge for row in rows() for edge in family.trace(row.numpy())[1]}
    states = family.program.states
    return [
        (number, ("else", "then")[side])
        for number, state in enumerate(states)
        for side in range(len(state.step.next.edges) if state.step else 0)
        if (number, side) not in taken
    ]


def proofs(rare: tuple[Path, Deciding, nn.Module], folder: Path) -> tuple[Proof, Proof]:
    """Without and with forced decisions."""
    _, made, net = rare
    family = load(folder)
    return (prove(made, net, family, rows(), force=False), prove(made, net, family, rows()))


def test_a_right_program_passes_on_every_edge(rare: tuple[Path, Deciding, nn.Module]) -> None:
    plain, forced = proofs(rare, rare[0])
    assert plain.covered == plain.taken < plain.edges
    assert (forced.mismatches, forced.forced_mismatches, forced.unfollowed) == (0, 0, 0)
    assert forced.covered == forced.edges
    assert len(forced.checked) == forced.edges
    assert sum(forced.ways.values()) == sum(len(load(rare[0]).trace(row.numpy())[1]) for row in rows())


def test_swapped_values_on_an_edge_nobody_takes_are_found(
    rare: tuple[Path, Deciding, nn.Module], tmp_path: Path
) -> None:
    number, side = untaken(rare[0])[0]

    def swap(program: dict[str, Any]) -> None:
        target = program["states"][number]["next"][side]["state"]
        kinds = program["states"][target]["params"]
        args = program["states"][number]["next"][side]["args"]
        same = [place for place, kind in enumerate(kinds) if kind == ["float32", [1, 6]]]
        assert len(same) > 1
        args[same[0]], args[same[1]] = args[same[1]], args[same[0]]

    plain, forced = proofs(rare, changed(rare[0], tmp_path / "a", swap))
    assert plain.mismatches == 0  # rows alone do not see it
    assert forced.forced_mismatches > 0
    assert "forced" in forced.example


def test_a_wrong_number_on_an_edge_nobody_takes_is_found(
    rare: tuple[Path, Deciding, nn.Module], tmp_path: Path
) -> None:
    def count(program: dict[str, Any]) -> None:
        found = [
            arg
            for number, side in untaken(rare[0])
            for arg in program["states"][number]["next"][side]["args"]
            if arg.get("const") == 7
        ]
        assert found
        for arg in found:
            arg["const"] = 8

    plain, forced = proofs(rare, changed(rare[0], tmp_path / "a", count))
    assert plain.mismatches == 0
    assert forced.forced_mismatches > 0


def test_an_edge_to_another_state_is_found(rare: tuple[Path, Deciding, nn.Module], tmp_path: Path) -> None:
    def lead_astray(program: dict[str, Any]) -> None:
        for number, side in untaken(rare[0]):
            edge = program["states"][number]["next"][side]
            other = program["states"][number]["next"]["then" if side == "else" else "else"]
            if program["states"][edge["state"]]["params"] == program["states"][other["state"]]["params"]:
                edge["state"] = other["state"]
                return
        pytest.fail("no two states take the same values")

    plain, forced = proofs(rare, changed(rare[0], tmp_path / "a", lead_astray))
    assert plain.mismatches == 0
    assert forced.forced_mismatches + forced.unfollowed > 0


def test_swapped_sides_are_found_by_rows(rare: tuple[Path, Deciding, nn.Module], tmp_path: Path) -> None:
    taken = {edge for row in rows() for edge in load(rare[0]).trace(row.numpy())[1]}
    number = next(n for n, _ in taken if (n, 0) in taken and (n, 1) in taken)

    def swap(program: dict[str, Any]) -> None:
        following = program["states"][number]["next"]
        following["then"], following["else"] = following["else"], following["then"]

    plain, _ = proofs(rare, changed(rare[0], tmp_path / "a", swap))
    assert plain.mismatches > 0


def test_tours_meet_every_edge(rare: tuple[Path, Deciding, nn.Module]) -> None:
    family = load(rare[0])
    sides = [[edge.state for edge in state.step.next.edges] for state in family.program.states if state.step]
    everything = {(number, side) for number, each in enumerate(sides) for side in range(len(each))}
    met: set[tuple[int, int]] = set()
    for way in _tours(family, set()):
        number = 0
        for state, side in way:
            assert state == number
            met.add((state, side))
            number = sides[state][side]
        assert sides[number] == []  # it ends
    assert met == everything
    assert list(_tours(family, everything)) == []
    assert _distances({2}, [[1], [2, 0], []]) == {2: 0, 1: 1, 0: 2}


def test_batchnorm_on_a_way_nobody_takes_is_in_the_graph(tmp_path: Path) -> None:
    """Its output is not computed while ways are looked for; the block must hold it all the same, with its numbers."""
    net = Normed().eval()
    with torch.no_grad():
        net.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        net.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        net.norm.weight.uniform_(0.5, 2)
    x = torch.randn(2, 1, 6, 6)
    out = compile(net, tmp_path / "a", example=x)
    stored = {tensor["name"] for tensor in json.loads((out / "program.json").read_text())["tensors"]}
    assert {"norm.running_mean", "norm.running_var", "norm.weight", "norm.bias"} <= stored
    made = deciding(net, x)
    used = {name for block in made.blocks for name in block.names.values()}
    assert {"norm.running_mean", "norm.running_var", "norm.weight", "norm.bias"} <= used
    assert prove(made, net, load(out), [x[:1]]).forced_mismatches == 0
    other = Normed().eval()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.norm.running_mean.add_(1)  # type: ignore[union-attr]
    proof = prove(deciding(other, x), other, load(out), [x[:1]])
    assert proof.mismatches == 0
    assert proof.forced_mismatches > 0


def test_rows_are_stored_and_tried(rare: tuple[Path, Deciding, nn.Module], tmp_path: Path) -> None:
    out, made, net = rare
    program = json.loads((out / "program.json").read_text())
    check = program["entries"][0]["check"]
    assert check is not None
    assert len(check["inputs"]) == 1
    assert load(out).check()[0] < 1e-5
    assert verify(out)["max_rel_error"] < 1e-5
    kept = to_check(made, net, rows(12))
    assert len({tuple(way) for way in (load(out).trace(row.numpy())[1] for row, _ in kept)}) == len(kept) > 1

    def flip(program: dict[str, Any]) -> None:
        """Both sides of the decision that rows do take lead to where the other one led."""
        for state in program["states"]:
            if "if" in state["next"]:
                state["next"]["then"], state["next"]["else"] = state["next"]["else"], state["next"]["then"]

    with pytest.raises(ArtifactError, match="differs"):
        load(changed(out, tmp_path / "a", flip)).check()


def test_rows_near_a_threshold_are_not_stored() -> None:
    class Edge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 1.0 else x

    net = Edge()
    made = deciding(net, torch.ones(1, 2))
    near, far = torch.tensor([[0.5, 0.50001]]), torch.tensor([[0.5, 2.0]])
    assert [row.tolist() for row, _ in to_check(made, net, [near, far])] == [far.tolist()]
    assert to_check(made, net, [near]) == []


def test_check_rows_of_another_shape_are_refused(rare: tuple[Path, Deciding, nn.Module], tmp_path: Path) -> None:
    def reshape(program: dict[str, Any]) -> None:
        name = program["entries"][0]["check"]["inputs"][0]
        tensor = next(item for item in program["tensors"] if item["name"] == name)
        tensor["shape"] = [int(np.prod(tensor["shape"]))]

    with pytest.raises(ArtifactError, match="checks with float32"):
        load(changed(rare[0], tmp_path / "a", reshape))
