"""A network that decides as one ONNX file."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.deploy import compile, single_file
from pliant.deploy.prove import apart
from pliant.deploy.single import RETURNS, read_single
from pliant_runtime.sessions import new_session


class Mixed(nn.Module):
    """A loop, a choice, an early return, an error; numbers, words and an infinity among what it returns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.experts = nn.Linear(6, 3), nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        """Several structures."""
        if x[0, 0] > 3:
            raise ValueError("too large")
        if x[0, 1] > 1:
            return {"early": x * 2, "why": "first", "best": float("inf")}
        steps = 0
        while x.norm() > 1.5 and steps < 6:
            x = torch.tanh(self.experts[self.gate(x).argmax().item()](x)) * 0.8
            steps += 1
        return {"late": [self.head(x), steps], "long": x.sum().item() > 0}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(Mixed(), tmp_path_factory.mktemp("a") / "mixed", example=torch.randn(8, 6))


@pytest.fixture(scope="module")
def session(artifact: Path) -> ort.InferenceSession:
    out = single_file(artifact, artifact.with_name("mixed.onnx"))
    return new_session(out.read_bytes())


def answer(session: ort.InferenceSession, x: Tensor) -> Any:
    names = [item.name for item in session.get_outputs()]
    found = session.run(names, {"input": x.numpy()})
    return read_single(dict(zip(names, found, strict=True)), session.get_modelmeta().custom_metadata_map[RETURNS])


def test_it_returns_what_the_network_does_on_every_way(session: ort.InferenceSession) -> None:
    net, seen = Mixed(), set()
    generator = torch.Generator().manual_seed(2)
    for _ in range(60):
        x = torch.randn(1, 6, generator=generator) * 1.5
        if x[0, 0] > 3:
            continue
        wanted = net(x)
        gap = apart(wanted, answer(session, x))
        assert gap is not None
        assert gap < 1e-4
        seen.add((next(iter(wanted)), str(wanted.get("late", [0, 0])[1])))
    assert len(seen) > 3


def test_errors_of_the_network_are_raised(session: ort.InferenceSession) -> None:
    with pytest.raises(RuntimeError, match="ValueError: too large"):
        answer(session, torch.full((1, 6), 4.0))


def test_it_is_compared_before_it_is_written(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pliant.deploy.single.numbers_in", lambda result: [np.asarray(id(result) % 997)])
    with pytest.raises(PliantError, match="answers otherwise"):
        single_file(artifact, tmp_path / "a.onnx", inputs=[np.zeros((1, 6), np.float32)])
    assert not (tmp_path / "a.onnx").exists()


def test_a_network_that_does_not_decide_is_refused(tmp_path: Path) -> None:
    static = compile(nn.Linear(3, 2), tmp_path / "static", example=torch.randn(2, 3))
    with pytest.raises(PliantError, match="does not decide"):
        single_file(static, tmp_path / "a.onnx")


def test_where_all_ways_return_alike_the_file_says_the_shapes(tmp_path: Path) -> None:
    class Alike(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            if x.sum() > 0:
                return x * 2, 1
            return x - 1, 2 + int(x.max().item())

    made = compile(Alike(), tmp_path / "a", example=torch.ones(1, 3))
    model = onnx.load(single_file(made, tmp_path / "a.onnx"))
    shapes = {item.name: [size.dim_value for size in item.type.tensor_type.shape.dim] for item in model.graph.output}
    assert shapes["float32_0"] == [1, 3]
    assert shapes["end_state"] == []
