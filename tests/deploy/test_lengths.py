"""Free lengths of networks that decide: other lengths than the example's are answered as by the module, or refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.deploy import compile, single_file
from pliant.deploy.prove import apart
from pliant.deploy.single import RETURNS, read_single
from pliant.testing.zoo_dynamic_text import dynamic
from pliant_runtime import Family, load
from pliant_runtime.sessions import new_session


class Exits(nn.Module):
    """A transformer that leaves early; it returns what it counted, and the length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.position = nn.Embedding(20, 16), nn.Embedding(24, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> dict[str, Any]:
        """Logits, a table over the positions, numbers."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.position(torch.arange(length))
        used = 0
        for layer in self.layers:
            x = layer(x)
            used += 1
            scores = self.head(x.view(1, length, 2, 8).flatten(2).mean(1))
            if scores.max() > 0.3:
                break
        causal = torch.ones(length, length).tril()
        table = (causal @ x[0]) / length
        return {"scores": scores, "table": table, "used": used, "length": length, "half": length // 2}


class Loop(nn.Module):
    """A recurrent network whose loop over the positions decides, too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell = nn.GRUCell(4, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """The last state, and how many positions were read twice."""
        h, twice = torch.zeros(x.shape[0], 6), 0
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            if h.mean() > 0.05:
                h = self.cell(x[:, t], h)
                twice += 1
        return h, twice


def tokens(length: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(seed + length))


def answers(net: nn.Module, family: Family, inputs: Tensor) -> float | None:
    with torch.no_grad():
        return apart(net(inputs), family.run(inputs.numpy()))


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(Exits().eval(), tmp_path_factory.mktemp("a") / "exits", example=tokens(9, rows=3))


def test_other_lengths_are_answered_as_by_the_module(exits: Path) -> None:
    net, family = Exits().eval(), load(exits)
    assert family.signature.lengths == {"L": (2, 24)}
    assert family.signature.inputs[0].shape == ("N", "L")
    used = set()
    for length in range(2, 25):
        for seed in range(3):
            row = tokens(length, seed=100 * seed)
            found = answers(net, family, row)
            assert found is not None
            assert found < 1e-4, length
            used.add(family.run(row.numpy())["used"])
    assert len(used) > 1


def test_lengths_outside_are_refused_and_bounds_are_told(exits: Path) -> None:
    family = load(exits)
    with pytest.raises(ValueError, match=r"takes the shape \[N, L\] \(L goes from 2 to 24\), got \[1, 25\]"):
        family.run(tokens(25).numpy())
    with pytest.raises(ValueError, match=r"got \[2, 1\]"):
        family.run(tokens(1, rows=2).numpy())
    assert "free lengths: L from 2 to 24 (compared at 9, 10, " in str(family.program.conditions["lengths"])


def test_many_rows_of_another_length_are_independent_runs(exits: Path) -> None:
    net, family = Exits().eval(), load(exits)
    rows = tokens(15, rows=12)
    got = family.run(rows.numpy())
    for number, row in enumerate(rows):
        with torch.no_grad():
            wanted = net(row[None])
        np.testing.assert_allclose(got["scores"][number], wanted["scores"][0].numpy(), atol=1e-5)
        np.testing.assert_allclose(got["table"][number * 15 : number * 15 + 15].reshape(15, 16)
                                   if got["table"].shape[0] == 12 * 15 else got["table"][number],
                                   wanted["table"].numpy(), atol=1e-4)  # fmt: skip
        assert (got["used"][number], got["length"][number], got["half"][number]) == (wanted["used"], 15, 7)


def test_blocks_run_on_many_rows_at_once(exits: Path) -> None:
    program = json.loads((exits / "program.json").read_text())
    assert [state["rows"]["why"] for state in program["states"] if state["graph"] and "why" in state["rows"]] == []


def test_a_loop_over_the_length_is_a_loop_of_the_program(tmp_path: Path) -> None:
    net = Loop().eval()
    family = load(compile(net, tmp_path / "a", example=torch.randn(2, 4, 4)))
    assert family.signature.lengths["L"] == (2, 64)
    assert len(family.program.states) < 10
    for length in (2, 3, 7, 40, 64):
        found = answers(net, family, torch.randn(1, length, 4, generator=torch.Generator().manual_seed(length)))
        assert found is not None
        assert found < 1e-5


def test_one_file_has_the_lengths_too(exits: Path) -> None:
    session = new_session(single_file(exits, exits.with_name("one.onnx")).read_bytes())
    net, names = Exits().eval(), [item.name for item in session.get_outputs()]
    returns = session.get_modelmeta().custom_metadata_map[RETURNS]
    for length in (2, 11, 24):
        found = session.run(names, {"input": tokens(length).numpy()})
        with torch.no_grad():
            wanted = net(tokens(length))
        difference = apart(wanted, read_single(dict(zip(names, found, strict=True)), returns))
        assert difference is not None
        assert difference < 1e-4


@pytest.mark.parametrize("name", ["deebert", "patience", "mixture_of_depths", "act"])
def test_networks_as_users_write_them(name: str, tmp_path: Path) -> None:
    net, draw = dynamic(name)
    generator = torch.Generator().manual_seed(1)
    example = draw(generator)
    family = load(compile(net, tmp_path / "a", example=example))
    least, most = family.signature.lengths["L"]
    assert least == 2
    assert most == {"deebert": 32}.get(name, 64)
    for length in (2, 3, example.shape[1] + 5, most):
        rows = torch.cat([draw(generator) for _ in range(most)], 1)[:, :length]
        found = answers(net, family, rows)
        assert found is not None
        assert found < 1e-4


class Thresholds(nn.Module):
    """It is another network from 12 positions on."""

    def forward(self, x: Tensor) -> Tensor:
        """Scaled."""
        scale = 3.0 if x.shape[1] >= 12 else 2.0
        if x.sum() > 0:
            return x * scale
        return -x


class Baked(nn.Module):
    """Its length is written into the code."""

    def forward(self, x: Tensor) -> Tensor:
        """Halved."""
        if x.sum() > 0:
            return x.view(1, 6, 4) * 2
        return x


class Grows(nn.Module):
    """It keeps a list of all positions."""

    def forward(self, x: Tensor) -> Tensor:
        """Cumulated."""
        kept = []
        total = torch.zeros(1, 4)
        for t in range(x.shape[1]):
            total = total + x[:, t]
            if total.sum() > 2:
                total = total * 0.5
            kept.append(total)
        return torch.stack(kept, 1)


def test_what_the_code_asks_of_the_length_bounds_it(tmp_path: Path) -> None:
    family = load(compile(Thresholds(), tmp_path / "a", example=torch.randn(1, 8, 4)))
    assert family.signature.lengths == {"L": (2, 11)}
    assert answers(Thresholds(), family, torch.ones(1, 11, 4)) == 0.0
    with pytest.raises(ValueError, match="L goes from 2 to 11"):
        family.run(np.ones((1, 12, 4), np.float32))


@pytest.mark.parametrize(
    ("net", "length", "why"),
    [(Baked(), 6, "test_lengths.py"), (Grows(), 5, "a loop over a free length keeps what grows")],
)
def test_a_length_that_cannot_be_free_stays_with_the_reason(
    net: nn.Module, length: int, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = load(compile(net, tmp_path / "a", example=torch.randn(1, length, 4)))
    assert not family.signature.lengths
    told = str(family.program.conditions["lengths"])
    assert told.startswith("lengths are the example's: ")
    assert why in told
    assert told in capsys.readouterr().out
    x = torch.randn(1, length, 4)
    assert answers(net, family, x) is not None
    with pytest.raises(ValueError, match=rf"takes the shape \[N, {length}, 4\], got \[1, {length + 1}, 4\]"):
        family.run(np.ones((1, length + 1, 4), np.float32))


class Recurrent(nn.Module):
    """Convolutions with a stride, an LSTM both ways, the first half of what they give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv1d(4, 8, 3, stride=2), nn.Linear(12, 3)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        """Scores, and a number that follows from the length."""
        y, _ = self.lstm(torch.relu(self.conv(x.transpose(1, 2))).transpose(1, 2))
        if y.mean() > 0:
            y = y * 2 / x.shape[1]
        return self.head(y[:, : y.shape[1] // 2].mean(1)), x.shape[1] * 2


class Two(nn.Module):
    """Two sequences, each with a length of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.gate = nn.Embedding(20, 8), nn.Linear(8, 1)
        self.own = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Target states."""
        a, b = self.own(self.embed(source)), self.embed(target)
        y: Tensor = b + self.cross(b, a, a)[0]
        if self.gate(y.mean(1)) > 0:
            y = y + self.cross(y, a, a)[0]
        return y


def test_sizes_that_follow_from_the_length_are_free_too(tmp_path: Path) -> None:
    net = Recurrent().eval()
    family = load(compile(net, tmp_path / "a", example=torch.randn(1, 10, 4)))
    assert family.signature.lengths == {"L": (5, 64)}  # four give no step to take the half of
    for length in (5, 8, 9, 33, 64):
        found = answers(net, family, torch.randn(1, length, 4, generator=torch.Generator().manual_seed(length)))
        assert found is not None
        assert found < 1e-4


def test_inputs_have_lengths_of_their_own(tmp_path: Path) -> None:
    net = Two().eval()
    family = load(compile(net, tmp_path / "a", example=(tokens(6), tokens(8))))
    assert family.signature.lengths == {"L": (2, 64), "L2": (2, 64)}
    for one, other in ((2, 2), (11, 3), (5, 40)):
        inputs = (tokens(one), tokens(other))
        with torch.no_grad():
            found = apart(net(*inputs), family.run(tuple(tensor.numpy() for tensor in inputs)))
        assert found is not None
        assert found < 1e-4
