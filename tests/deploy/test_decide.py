"""Networks that decide, compiled: the artifact answers as the network does, on one row and on many."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.deploy import compile, verify
from pliant.deploy.decide import deciding
from pliant.deploy.prove import apart, prove
from pliant.flow import Rejected
from pliant_runtime import load


class Exits(nn.Module):
    """Leaves early, through a helper; counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(4))

    def sure(self, y: Tensor) -> bool:
        return bool(y.softmax(-1).max() > 0.5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        for i, (stage, head) in enumerate(zip(self.stages, self.heads)):  # noqa: B007
            x = torch.relu(stage(x))
            y = head(x)
            if self.sure(y):
                break
        return {"logits": y, "exit": i}


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.conv = nn.Conv1d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = torch.tanh(self.experts[self.gate(x).argmax().item()](x) * 2)
        while x.norm() > 1:
            x = x * 0.7
        out: Tensor = self.conv(x.unsqueeze(1)).flatten(1)
        return out


class Lengths(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        kept = [x]
        while x.sum() > 0 and len(kept) < 4:
            x = x - 1
            kept.append(x)
        return kept


class Strict(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            raise ValueError("negative")
        return x * 2


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(Exits(), tmp_path_factory.mktemp("a") / "exits", example=torch.randn(5, 8))


def rows(count: int, scale: float = 2.0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(3)) * scale


def test_one_row_gives_what_the_network_returns(exits: Path) -> None:
    family, net = load(exits), Exits().eval()
    seen = set()
    for row in rows(40):
        wanted = net(row[None])
        got = family.run(row[None].numpy())
        assert list(got) == ["logits", "exit"]
        np.testing.assert_allclose(got["logits"], wanted["logits"].detach().numpy(), atol=1e-5)
        assert (type(got["exit"]), got["exit"]) == (int, wanted["exit"])
        seen.add(got["exit"])
    assert len(seen) > 1


@pytest.mark.parametrize("kind", [Exits, Experts])
def test_many_rows_are_independent_runs(kind: type[nn.Module], tmp_path: Path) -> None:
    net = kind().eval()
    family = load(compile(net, tmp_path / "a", example=rows(2)))
    x = rows(33)
    one_by_one = [net(row[None]) for row in x]
    got = family.run(x.numpy())
    if kind is Exits:
        assert got["exit"].tolist() == [each["exit"] for each in one_by_one]
        got, one_by_one = got["logits"], [each["logits"] for each in one_by_one]
    np.testing.assert_allclose(got, torch.cat(one_by_one).detach().numpy(), atol=1e-5)


def test_blocks_of_common_operators_run_on_many_rows(tmp_path: Path) -> None:
    program = json.loads((compile(Experts(), tmp_path / "a", example=rows(2)) / "program.json").read_text())
    assert [state["rows"] for state in program["states"] if state["graph"] and "why" in state["rows"]] == []


def test_ways_that_return_different_structures_come_row_by_row(tmp_path: Path) -> None:
    family = load(compile(Lengths(), tmp_path / "a", example=torch.ones(1, 2)))
    x = torch.tensor([[0.2, 0.1], [1.0, 1.5], [-1.0, 0.0]])
    got = family.run(x.numpy())
    for row, found in zip(x, got, strict=True):
        assert apart(Lengths()(row[None]), found) == 0.0


def test_errors_of_the_network_are_raised(tmp_path: Path) -> None:
    family = load(compile(Strict(), tmp_path / "a", example=torch.ones(1, 2)))
    np.testing.assert_array_equal(family.run(np.ones((1, 2), np.float32)), np.full((1, 2), 2, np.float32))
    with pytest.raises(ValueError, match="negative"):
        family.run(-np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="negative"):
        family.run(np.array([[1, 1], [-1, -1]], np.float32))


def test_weights_are_stored_once_and_equal_blocks_share_a_graph(exits: Path) -> None:
    program = json.loads((exits / "program.json").read_text())
    stored = [tensor["name"] for tensor in program["tensors"] if tensor["name"].endswith("weight")]
    assert len(stored) == len(set(stored)) == 8
    graphs = {state["graph"] for state in program["states"]} - {None}
    assert len(graphs) < len(program["states"])


def test_the_coverage_is_printed_and_every_edge_was_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compile(Exits(), tmp_path / "a", example=rows(5))
    text = capsys.readouterr().out
    family = load(out)
    edges = int(family.program.conditions["edges"])
    assert f"{edges} of {edges} edges checked" in text
    assert "0 mismatches" in text
    assert verify(out)["name"] == "Exits"


def test_a_wrong_edge_is_found(tmp_path: Path) -> None:
    net = Exits().eval()
    made = deciding(net, rows(2))
    folder = compile(net, tmp_path / "a", example=rows(2))
    program = load(folder).program
    assert prove(made, net, load(folder), [rows(1)]).mismatches == 0
    broken = Exits().eval()
    with torch.no_grad():
        broken.heads[3].bias.add_(1.0)  # type: ignore[operator]
    proof = prove(deciding(broken, rows(2)), broken, load(folder), [rows(1)])
    assert proof.mismatches + proof.forced_mismatches > 0
    assert program.steps > 1


def test_infinities_travel(tmp_path: Path) -> None:
    class Best(nn.Module):
        def forward(self, x: Tensor) -> Any:
            best = float("inf")
            for _ in range(3):
                if x.sum() < best:
                    best = x.sum().item()
                    x = x - 1
            return x, best, -float("inf")

    family = load(compile(Best(), tmp_path / "a", example=torch.ones(1, 2)))
    x = torch.tensor([[3.0, 4.0]])
    assert apart(Best()(x), family.run(x.numpy())) == 0.0


def test_refusals_reach_the_caller(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                print("here")
            return x

    with pytest.raises(Rejected, match="side effect"):
        compile(Noisy(), tmp_path / "a", example=torch.ones(1, 2))
    assert not (tmp_path / "a").exists()


def test_a_network_that_fails_on_one_row_says_so(tmp_path: Path) -> None:
    class Batch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x[1]
            return x

    with pytest.raises(PliantError, match="one row of the example: IndexError"):
        compile(Batch(), tmp_path / "a", example=torch.ones(4, 2))


def test_inputs_without_common_rows_stay_as_they_are(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            if h.sum() > x.sum():
                return x + h.sum()
            return x * h.mean()

    net = Two()
    x, h = torch.randn(1, 4), torch.randn(3, 1, 2)
    family = load(compile(net, tmp_path / "a", example=(x, h)))
    for sign in (1.0, -1.0):
        np.testing.assert_allclose(family.run((x.numpy(), (h * sign).numpy())), net(x, h * sign).numpy(), atol=1e-6)


def test_apart_tells_structures_apart() -> None:
    one = torch.ones(2)
    assert apart(one, np.ones(2, np.float32)) == 0.0
    assert apart([one, 1], [np.ones(2, np.float32), 1]) == 0.0
    assert apart([one, 1], [np.ones(2, np.float32), True]) is None
    assert apart((one,), [np.ones(2, np.float32)]) is None
    assert apart({"a": 1.0}, {"a": 1.5}) == 0.5
    assert apart(torch.ones(2, dtype=torch.int64), np.array([1, 2])) == float("inf")
