"""Whole families in one graph: every sub-network answers as its own artifact does."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.core import Config, PliantError
from pliant.deploy import compile, layout
from pliant.deploy.pack import Packer
from pliant.deploy.plain_graph import Unfit
from pliant.deploy.shell_graph import free, ordered
from pliant.elastic import Elastic, elastic
from pliant.nets import gpt, mlp, vit
from pliant.testing.zoo import ZOO
from pliant_runtime import Family, load


class FeedForward(nn.Module):
    """A residual feed-forward block with a gate."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.up, self.gate = nn.Linear(features, hidden), nn.Linear(features, hidden, bias=False)
        self.down = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out: Tensor = x + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        return out


def blocks() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(FeedForward(16, 32) for _ in range(2)), nn.Linear(16, 3)), torch.randn(4, 16)


def perceptron() -> tuple[nn.Module, Tensor]:
    return mlp((1, 6, 6), 5, hidden=(32, 48, 24)), torch.randn(4, 1, 6, 6)


def images() -> tuple[nn.Module, Tensor]:
    return vit((3, 8, 8), 5, dim=32, depth=2, heads=4), torch.randn(4, 3, 8, 8)


def text() -> tuple[nn.Module, Tensor]:
    return gpt((8,), 20, dim=32, depth=2, heads=4), torch.randint(0, 20, (4, 8))


def from_zoo(name: str) -> Callable[[], tuple[nn.Module, Any]]:
    def make() -> tuple[nn.Module, Any]:
        if importlib.util.find_spec("transformers") is None:
            pytest.skip("transformers is not installed")
        return ZOO[name].make(), ZOO[name].example()

    return make


def families(net: Elastic, residual: str | None, *, brief: bool = False) -> list[Config]:
    """Sub-networks that differ in widths, in heads, in blocks, and one that contains no other."""
    whole, small = dict(net.space.largest()), dict(net.space.smallest())
    sizes = [name for name in whole if not name.startswith("depth:") and name != residual]
    depths = [name for name in whole if name.startswith("depth:")]
    middle = {name: net.space[name].choices[len(net.space[name].choices) // 2] for name in sizes}
    found = [whole, whole | middle, whole | {name: small[name] for name in sizes}, whole | {sizes[0]: small[sizes[0]]}]
    if brief:  # networks that only the slow exporter takes
        found = [whole, whole | {name: small[name] for name in sizes}, whole | {depths[1]: False}]
    elif depths:
        found += [whole | {depths[0]: False}, whole | middle | dict.fromkeys(depths[1:], False)]
    return list(dict.fromkeys(Config(each) for each in found))


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], str | None]] = {
    "feed-forward": (blocks, None),
    "mlp": (perceptron, None),
    "vit": (images, "width:cls_token"),
    "gpt": (text, "width:positions"),
    "bert": (from_zoo("bert"), None),
    "gpt2": (from_zoo("gpt2"), "width:transformer.wpe"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("gpt", "bert", "gpt2") else name for name in CASES]
)
def test_every_sub_network_answers_as_its_own_artifact(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, residual = CASES[name]
    module, example = make()
    net = elastic(module, example)
    configs = families(net, residual, brief=name in ("bert", "gpt2"))
    family = load(compile(net, tmp_path / "all", configs=configs, layout="shells"))
    program = family.program
    assert program.layout is not None
    assert program.layout.form == "shells"
    assert [state.like for state in program.states] == [None] + [0] * (len(configs) - 1)
    assert len({state.on for state in program.states}) == len(configs)
    assert len(list((tmp_path / "all").glob("*.onnx"))) == 1
    rows = [tensor.numpy() for tensor in example.values()] if isinstance(example, Mapping) else [example.numpy()]
    given: Any = dict(zip(example, rows, strict=True)) if isinstance(example, Mapping) else rows[0]
    for number, config in enumerate(configs):
        own = load(compile(net, tmp_path / f"own{number}", configs=config))
        for one, other in zip(_arrays(family.run(given, entry=number)), _arrays(own.run(given)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * max(np.abs(other).max(), 1e-6))
        assert family.entries[number].measured["max_rel_error"] < 1e-4
    assert family.check().keys() == set(range(len(configs)))
    single = (tmp_path / "own0" / "weights.bin").stat().st_size
    checks = sum(t.nbytes for t in program.tensors.values() if t.name.startswith("check/"))
    padding = 64 * len(program.tensors)
    assert (tmp_path / "all" / "weights.bin").stat().st_size <= 1.05 * single + checks + padding


def _arrays(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        output = list(output.values())
    return [array for item in output for array in _arrays(item)] if isinstance(output, tuple | list) else [output]


@pytest.fixture(scope="module")
def small() -> tuple[Elastic, list[Config]]:
    torch.manual_seed(0)
    net = elastic(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)), torch.randn(4, 6))
    return net, [net.space.smallest(), net.space.largest()]


def _timed(ratio: float) -> Callable[..., dict[str, list[float]]]:
    def fastest(families: Mapping[str, Family], drafts: Any, rows: int) -> dict[str, list[float]]:
        return {
            name: [1.0 if name == "slices" else ratio, 4.0 * (1.0 if name == "slices" else ratio)] for name in families
        }

    return fastest


def test_the_faster_form_is_taken_and_the_reason_told(
    small: tuple[Elastic, list[Config]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    net, configs = small
    monkeypatch.setattr(layout, "fastest", _timed(1.1))
    taken = load(compile(net, tmp_path / "a", configs=configs)).program
    assert taken.layout is not None
    assert taken.layout.form == "shells"
    assert taken.layout.measured["latency_ratio_b8"] == pytest.approx(1.1)
    assert "1.10 times as long" in capsys.readouterr().out
    monkeypatch.setattr(layout, "fastest", _timed(1.2))
    refused = load(compile(net, tmp_path / "b", configs=configs)).program
    assert refused.layout is not None
    assert refused.layout.form == "slices"
    assert refused.layout.switch is None
    assert "1.20 times as long" in refused.layout.why
    told = capsys.readouterr().out
    assert "slices (shells take 1.20 times" in told
    assert "largest over smallest: 4.00x with 1 row, 4.00x with 8 rows" in told
    assert refused.conditions["dynamic_range_b8"] == 4.0
    assert "form: slices" in (tmp_path / "b" / "card.md").read_text()
    assert json.loads((tmp_path / "b" / "card.json").read_text())["layout"]["form"] == "slices"


def test_both_forms_are_measured_where_both_can_be(small: tuple[Elastic, list[Config]], tmp_path: Path) -> None:
    net, configs = small
    found = load(compile(net, tmp_path / "a", configs=configs)).program
    assert found.layout is not None
    assert set(found.layout.measured) == {"latency_ratio_b1", "latency_ratio_b8", "weights_ratio", "disk_ratio"}
    assert found.layout.measured["weights_ratio"] < 1
    assert float(found.conditions["dynamic_range_b1"]) >= 1.0


def test_convolutions_stay_slices_of_one_file(family_net: Elastic, tmp_path: Path) -> None:
    configs = list(family_net.space.configs())
    family = load(compile(family_net, tmp_path / "a", configs=configs))
    assert family.program.layout is not None
    assert family.program.layout.form == "slices"
    assert "Conv of stem.weight" in family.program.layout.why
    with pytest.raises(PliantError, match=r"cannot be shells of one graph: .*Conv.*layout=.slices."):
        compile(family_net, tmp_path / "b", configs=configs, layout="shells")
    assert not (tmp_path / "b").exists()


class Batches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(torch.relu(self.norm(self.up(x))))
        return out


def test_what_cannot_be_a_shell_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.randn(64, 6)
    net = elastic(Batches(), rows[:4])
    configs = [net.space.smallest(), net.space.largest()]
    data = rows.numpy(), rows[:, :3].argmax(1).numpy()
    own = load(compile(net, tmp_path / "a", configs=configs, data=data)).program.layout
    assert own is not None
    assert "norm.running_mean has other numbers in every sub-network" in own.why
    net = elastic(nn.Sequential(nn.Linear(5, 16), FeedForward(16, 32), nn.Linear(16, 2)), torch.randn(4, 5))
    residual = next(name for name in net.space.largest() if name.startswith("width:0"))
    shrunk = Config({**net.space.largest(), residual: net.space[residual].choices[0]})
    mixed = load(compile(net, tmp_path / "b", configs=[shrunk, net.space.largest()])).program.layout
    assert mixed is not None
    assert "LayerNormalization of 1.norm.weight mixes units that bend" in mixed.why


def test_other_layouts_are_refused(small: tuple[Elastic, list[Config]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout must be one of auto, slices, shells, got 'folded'"):
        compile(small[0], tmp_path / "a", layout="folded")
    with pytest.raises(PliantError, match="one sub-network only"):
        compile(small[0], tmp_path / "a", configs=small[1][:1], layout="shells")


def test_nodes_are_put_in_an_order_that_runs() -> None:
    from onnx import helper

    nodes = [helper.make_node("Relu", ["b"], ["c"]), helper.make_node("Relu", ["a"], ["b"])]
    assert [node.output[0] for node in ordered(nodes, ["a"])] == ["b", "c"]
    branch = helper.make_graph(nodes, "branch", [], [helper.make_empty_tensor_value_info("c")])
    assert free(helper.make_node("If", ["on"], ["d"], then_branch=branch, else_branch=branch)) == ["on", "a", "a"]
    with pytest.raises(Unfit, match="needs what is made after it"):
        ordered([helper.make_node("Add", ["a", "c"], ["b"]), helper.make_node("Relu", ["b"], ["c"])], ["a"])


def test_a_packer_of_shells_stores_equal_ones_once(tmp_path: Path) -> None:
    packer = Packer({})
    packer.add({"w#0": np.ones(4, np.float32), "w.1#0": np.ones(4, np.float32)}, {})
    assert len(packer.write(tmp_path / "weights.bin")) == 1
