"""Free lengths in artifacts: what a program says about them is checked before anything runs, and so are inputs."""

import json
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
    """Takes tokens with a mask, and gives one position more than it got where it decides so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.gate = nn.Embedding(9, 4), nn.Linear(4, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Any:
        """States [1, T or T + 1, 4]."""
        x = self.embed(tokens) * mask.unsqueeze(-1)
        if self.gate(x.mean(1)) > 0:
            x = torch.cat([x, x[:, :1]], 1)
            if x.sum() > 1:
                return x * 2
        return x


def given(length: int, rows: int = 1, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 9, (rows, length), generator=generator)
    return {"tokens": tokens, "mask": (torch.rand(rows, length, generator=generator) > 0.2).float()}


def arrays(inputs: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(Net().eval(), tmp_path_factory.mktemp("artifact") / "net", example=given(6, rows=2))


def test_the_program_says_what_is_free(original: Path) -> None:
    program = json.loads((original / "program.json").read_text())
    assert program["signature"]["lengths"] == {"L": [2, 64]}
    assert [value["shape"] for value in program["signature"]["inputs"]] == [["N", "L"], ["N", "L"]]
    assert program["sizes"] == ["L+1"]
    net, family = Net().eval(), load(original)
    lengths = set()
    for seed in range(30):
        inputs = given(2 + seed, seed=seed)
        found = family.run(arrays(inputs))
        with torch.no_grad():
            np.testing.assert_allclose(found, net(**inputs).numpy(), atol=1e-6)
        lengths.add(found.shape[1] - 2 - seed)
    assert lengths == {0, 1}


def test_rows_that_end_at_different_sizes_come_one_by_one(original: Path) -> None:
    net, inputs = Net().eval(), given(11, rows=20)
    found = load(original).run(arrays(inputs))
    assert isinstance(found, list)
    for number, one in enumerate(found):
        with torch.no_grad():
            wanted = net(**{name: tensor[number : number + 1] for name, tensor in inputs.items()})
        np.testing.assert_allclose(one, wanted.numpy(), atol=1e-6)


def test_inputs_of_other_lengths_are_refused(original: Path) -> None:
    family = load(original)
    mixed = arrays(given(7)) | {"mask": np.ones((1, 8), np.float32)}
    with pytest.raises(ValueError, match="inputs differ in the length L: tokens has 7, mask has 8"):
        family.run(mixed)
    with pytest.raises(ValueError, match=r"takes the shape \[N, L\] \(L goes from 2 to 64\), got \[1, 65\]"):
        family.run(arrays(given(65)))
    with pytest.raises(ValueError, match=r"got \[1, 3, 1\]"):
        family.run(arrays(given(3)) | {"mask": np.ones((1, 3, 1), np.float32)})


def _state(program: Json) -> Json:
    return next(state for state in program["states"] if any("L+1" in shape for _, shape in state["params"]))


FORGED: dict[str, tuple[Callable[[Json], object], str]] = {
    "no list": (lambda p: p["signature"].update(lengths=[["L", 2, 3]]), "lengths must be an object"),
    "one bound": (lambda p: p["signature"]["lengths"].update(L=[2]), "must be a list of 2 to 2 items"),
    "backwards": (lambda p: p["signature"]["lengths"].update(L=[9, 2]), "must not begin after its end"),
    "nothing": (lambda p: p["signature"]["lengths"].update(L=[0, 9]), "must be an integer from 1"),
    "a fraction": (lambda p: p["signature"]["lengths"].update(L=[2, 9.5]), "must be an integer from 1"),
    "true": (lambda p: p["signature"]["lengths"].update(L=[True, 9]), "must be an integer from 1"),
    "the batch": (lambda p: p["signature"]["lengths"].update(N=[2, 9]), "is no name of a length"),
    "code": (lambda p: p["signature"]["lengths"].update({"L()": [2, 9]}), "is no name of a length"),
    "unused": (lambda p: p["signature"]["lengths"].update(M=[2, 9]), "name 'M', which no input has"),
    "none": (lambda p: p["signature"].pop("lengths"), r"must be one of N, \?"),
    "unknown length": (lambda p: p["signature"]["inputs"][0]["shape"].__setitem__(1, "M"), "must be one of N"),
    "unknown size": (lambda p: _state(p)["params"][0][1].__setitem__(1, "L+2"), r"must be one of L, L\+1"),
    "undeclared": (lambda p: p.update(sizes=[]), "must be one of L"),
    "size twice": (lambda p: p.update(sizes=["L+1", "L+1"]), "name a size twice"),
    "size is a length": (lambda p: p.update(sizes=["L+1", "L"]), "name a size twice"),
    "size of a number": (lambda p: p.update(sizes=[3]), "must be a string"),
    "another size": (lambda p: _state(p)["params"][0][1].__setitem__(1, "L"), r"as value \d .*it takes"),
    "a fixed size": (lambda p: p["states"][0]["params"][0][1].__setitem__(1, 6), "starts a state that takes"),
    "check too long": (lambda p: p["signature"]["lengths"].update(L=[2, 5]), "checks with"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_lengths_are_refused(copied: Path, name: str) -> None:
    change, said = FORGED[name]
    forge(copied, change)
    with pytest.raises(ArtifactError, match=said):
        load(copied)


def test_a_graph_that_lies_about_a_free_size_is_refused_when_it_is_opened(copied: Path) -> None:
    def change(program: Json) -> None:
        text = json.dumps(program).replace('"L+1"', '"L+7"')
        program.clear()
        program.update(json.loads(text))

    forge(copied, change)
    family = load(copied)
    with pytest.raises(ArtifactError, match=r"'L\+1', 4\], the program says float32\[1, 'L\+7', 4\]"):
        family.prepare()
