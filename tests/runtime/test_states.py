"""Programs that decide: forged ones are refused before anything of them runs, with the place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.deploy import compile
from pliant_runtime import ArtifactError, load
from tests.runtime.forging import Json, forge


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        n = 0
        while x.norm() > 1:
            x = torch.tanh(self.f(x)) * 0.9
            n += 1
        return self.experts[x.argmax().item() % 2](x), n  # type: ignore[index]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(Net(), tmp_path_factory.mktemp("artifact") / "net", example=torch.randn(2, 4))


def _if(program: Json) -> Json:
    return next(state for state in program["states"] if "if" in state["next"])


def _switch(program: Json) -> Json:
    return next(state for state in program["states"] if "switch" in state["next"])


def _return(program: Json) -> Json:
    return next(state for state in program["states"] if "return" in state["next"])


FORGED: dict[str, tuple[Callable[[Json], object], str]] = {
    "no next": (lambda p: _if(p).update(next={}), "must have one of if, switch, return, raise"),
    "two nexts": (lambda p: _if(p)["next"].update(switch={"out": 0}), "must have one of"),
    "unknown": (lambda p: _if(p)["next"].update(eval="x"), "unknown member 'eval'"),
    "edge to nowhere": (lambda p: _if(p)["next"]["then"].update(state=99), "goes to state 99, which is none"),
    "edge backwards": (lambda p: _if(p)["next"]["then"].update(state=-1), "state must be an integer from 0"),
    "too few values": (lambda p: _if(p)["next"]["then"].update(args=[]), r"gives state \d+ 0 values, it takes"),
    "another dtype": (
        lambda p: _if(p)["next"]["then"]["args"].__setitem__(0, {"const": 1.0, "dtype": "float64"}),
        r"as value 0 float64\[\], it takes",
    ),
    "constant of no kind": (
        lambda p: _if(p)["next"]["then"]["args"].__setitem__(0, {"const": "1", "dtype": "int64"}),
        "const must be an integer",
    ),
    "ref out of range": (lambda p: _if(p)["next"].update({"if": {"out": 99}}), "must be an integer from 0 to"),
    "ref of two": (lambda p: _if(p)["next"].update({"if": {"out": 0, "in": 0}}), "at most 1 members|in: number"),
    "decides on a float": (lambda p: _if(p)["next"].update({"if": {"in": 0}}), r"must be bool\[\], is float32"),
    "switch on a float": (lambda p: _switch(p)["next"].update(switch={"in": 0}), r"must be int64\[\]"),
    "case twice": (lambda p: _switch(p)["next"]["cases"][1].__setitem__(0, 0), "name an integer twice"),
    "no cases": (lambda p: _switch(p)["next"].update(cases=[]), "must be a list of 1 to"),
    "returns a ref out of range": (
        lambda p: _return(p)["next"].update({"return": {"t": {"in": 99}}}),
        "must be an integer from 0 to",
    ),
    "returns code": (lambda p: _return(p)["next"].update({"return": {"eval": "1"}}), "must be one of t, scalar"),
    "scalar of a float": (
        lambda p: _return(p)["next"].update({"return": {"scalar": {"out": 0}, "type": "int"}}),
        r"must be int64\[\]",
    ),
    "parameters": (lambda p: p["states"][0].update(params=[]), "must be|starts a state|takes parameter"),
    "parameter dtype": (lambda p: p["states"][0]["params"][0].__setitem__(0, "object"), "must be one of float32"),
    "made": (lambda p: _if(p).update(made=[]), "must have one entry per output"),
    "graph with a path": (lambda p: _if(p).update(graph="../x.onnx"), "must be a plain file name"),
    "rows with a path": (
        lambda p: _if(p)["rows"].update(graph="/etc/passwd") if "graph" in _if(p)["rows"] else _if(p).update(rows={}),
        "must be a plain file name|lacks",
    ),
    "steps": (lambda p: p.update(steps=0), "steps must be an integer from 1"),
    "steps without end": (lambda p: p.update(steps=1 << 30), "steps must be at most 1000000"),
    "signature": (lambda p: p["signature"]["inputs"][0].update(shape=["N", 5]), "starts a state that takes"),
    "no graph but outputs": (lambda p: _if(p).update(graph=None), "come from no graph|inputs but no graph"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_programs_are_refused(copied: Path, name: str) -> None:
    change, said = FORGED[name]
    forge(copied, change)
    with pytest.raises(ArtifactError, match=said):
        load(copied)


def test_a_graph_that_lies_about_its_shapes_is_refused_when_it_is_opened(copied: Path) -> None:
    def change(program: Json) -> None:
        for state in program["states"]:
            state["params"] = [[dtype, [7] if shape == [1, 4] else shape] for dtype, shape in state["params"]]
        program["signature"]["inputs"][0]["shape"] = [7]

    forge(copied, change)
    with pytest.raises(ArtifactError):
        load(copied).run(np.zeros(7, np.float32))


def test_a_program_that_never_ends_is_stopped(copied: Path) -> None:
    def change(program: Json) -> None:
        program["steps"] = 50
        for number, state in enumerate(program["states"]):
            for side in ("then", "else"):
                edge = state["next"].get(side)
                if edge is not None and edge["state"] == number:
                    other = "else" if side == "then" else "then"
                    state["next"][other] = edge

    forge(copied, change)
    with pytest.raises(ArtifactError, match="took more than 50 steps"):
        load(copied).run(np.full((1, 4), 9, np.float32))
    with pytest.raises(ArtifactError, match="took more than 50 steps"):
        load(copied).run(np.full((3, 4), 9, np.float32))


def test_one_row_and_many_rows_agree(original: Path) -> None:
    family = load(original)
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) * 3
    out, n = family.run(x)
    for number, row in enumerate(x):
        one, steps = family.run(row[None])
        np.testing.assert_allclose(out[number], one[0], atol=1e-5)
        assert steps == n[number]


def test_the_way_is_told_and_can_be_forced(original: Path) -> None:
    family = load(original)
    x = np.full((1, 4), 0.1, np.float32)
    (_, n), way = family.trace(x)
    assert n == 0
    assert way[0] == (0, 0)
    turns = iter([1, 1])
    (_, n), _ = family.trace(x, forced=lambda _, side: next(turns, side))
    assert n >= 1
    with pytest.raises(ValueError, match="trace takes one row, got 2"):
        family.trace(np.zeros((2, 4), np.float32))
