"""From a network to a folder that answers the same without torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pliant.core import Config, PliantError
from pliant.data import Dataset
from pliant.deploy import compile, verify
from pliant.elastic import Elastic
from pliant.learn import evaluate
from pliant.search.objectives import Context
from pliant_runtime import load


@dataclass(frozen=True)
class Point:
    config: Config
    values: dict[str, float]


@pytest.fixture(scope="module")
def artifact(family_net: Elastic, data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "family.pliant"
    return compile(family_net, out, configs=list(family_net.space.configs()), data=data)


def test_every_entry_answers_like_the_extracted_module(family_net: Elastic, data: Any, artifact: Path) -> None:
    family = load(artifact)
    dataset = Dataset.of(data)
    batches = Context(family_net, train=dataset.train).calibration
    assert [Config(dict(entry.config)) for entry in family.entries] == list(family_net.space.configs())
    x = dataset.val.inputs
    assert isinstance(x, Tensor)
    for entry in family.entries:
        module = family_net.extract(Config(dict(entry.config)), calibrate=batches).eval()
        wanted = module(x).detach().numpy()
        got = family.run(x.numpy(), config=entry.config, preprocessed=True)
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


def test_measured_figures_are_those_of_the_module(family_net: Elastic, data: Any, artifact: Path) -> None:
    dataset = Dataset.of(data)
    batches = Context(family_net, train=dataset.train).calibration
    for entry in load(artifact).entries:
        config = Config(dict(entry.config))
        module = family_net.extract(config, calibrate=batches).eval()
        assert entry.measured["accuracy"] == pytest.approx(evaluate(module, dataset.val), abs=0.026)
        assert entry.measured["parameters"] == sum(tensor.numel() for tensor in module.parameters())
        assert entry.measured["flops"] == family_net.cost(config).flops
        assert 0 < entry.measured["latency_min_ms"] <= entry.measured["latency_ms"] < 100
        assert entry.measured["max_rel_error"] < 1e-4


def test_raw_samples_give_what_prepared_ones_give(data: Any, artifact: Path) -> None:
    family = load(artifact)
    dataset = Dataset.of(data)
    raw = data[0].numpy()
    scale, mean, std = (dataset.preprocessing[key] for key in ("scale", "mean", "std"))
    prepared = ((raw[:, None].astype(np.float32) / scale) - np.float32(mean[0])) / np.float32(std[0])
    np.testing.assert_allclose(family.run(raw), family.run(prepared, preprocessed=True), atol=1e-5)
    assert set(family.classify(raw[:5])) <= set(dataset.classes)


def test_weights_are_stored_once(family_net: Elastic, artifact: Path) -> None:
    program = json.loads((artifact / "program.json").read_text())
    names = [tensor["name"] for tensor in program["tensors"]]
    for name in ("stem.weight", "conv.weight", "head.weight"):
        assert [stored for stored in names if stored.startswith(name)] == [name]
    apart = [name for name in names if "@" in name and not name.startswith("check/")]
    assert apart
    assert all("running" in name for name in apart)
    largest = max(entry["measured"]["parameters"] for entry in program["entries"])
    parameters = sum(np.prod(tensor["shape"]) for tensor in program["tensors"] if tensor["name"].endswith("weight"))
    assert parameters <= largest


def test_graphs_hold_no_weights(artifact: Path) -> None:
    assert all(path.stat().st_size < 3000 for path in artifact.glob("*.onnx"))


def test_the_test_split_is_never_read(family_net: Elastic, data: Any, tmp_path: Path) -> None:
    dataset = Dataset.of(data)
    compile(family_net, tmp_path / "a", data=dataset)
    assert vars(dataset)["test_reads"] == 0


def test_the_network_is_not_changed(family_net: Elastic, data: Any, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in family_net.state_dict().items()}
    active, training = family_net.active, family_net.training
    compile(family_net, tmp_path / "a", configs=family_net.space.smallest(), data=data)
    assert (family_net.active, family_net.training) == (active, training)
    assert all(torch.equal(tensor, before[name]) for name, tensor in family_net.state_dict().items())


def test_nothing_chosen_is_the_largest(family_net: Elastic, tmp_path: Path) -> None:
    family = load(compile(family_net, tmp_path / "a"))
    assert [dict(entry.config) for entry in family.entries] == [dict(family_net.space.largest())]
    assert family.signature.preprocessing is None
    assert "accuracy" not in family.entries[0].measured


def test_one_small_network_takes_little_space(family_net: Elastic, tmp_path: Path) -> None:
    sizes = [
        (compile(family_net, tmp_path / name, configs=config) / "weights.bin").stat().st_size
        for name, config in (("small", family_net.space.smallest()), ("large", family_net.space.largest()))
    ]
    assert sizes[0] < sizes[1] / 2


def test_points_bring_their_accuracy_where_no_data_is_given(family_net: Elastic, tmp_path: Path) -> None:
    space = family_net.space
    points = [Point(space.smallest(), {"accuracy": 0.9, "latency_ms": 1.0}), Point(space.largest(), {"accuracy": 0.8})]
    family = load(compile(family_net, tmp_path / "a", configs=points))
    assert [entry.measured["accuracy"] for entry in family.entries] == [0.9, 0.8]
    assert family.choose() == 0
    assert family.program.conditions["accuracy"] == "as given with the configs, not measured here"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

    def forward(self, tokens: Tensor, scale: Tensor) -> dict[str, Any]:
        x = self.embed(tokens).mean(1) * scale
        return {"logits": self.head(x), "parts": [x, (3, "text")]}


def test_plain_modules_with_several_inputs_and_outputs(tmp_path: Path) -> None:
    module = Pair()
    example = {"tokens": torch.randint(7, (3, 5)), "scale": torch.rand(3, 1)}
    family = load(compile(module, tmp_path / "pair", example=example))
    got = family.run({name: tensor.numpy() for name, tensor in example.items()})
    wanted = module.eval()(**example)
    np.testing.assert_allclose(got["logits"], wanted["logits"].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(got["parts"][0], wanted["parts"][0].detach().numpy(), atol=1e-6)
    assert got["parts"][1] == (3, "text")
    assert family.name == "Pair"


class Scatter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_add(1, torch.tensor([0, 0, 1, 1]), x)


def test_threads_are_limited_where_the_runtime_would_be_wrong(tmp_path: Path) -> None:
    program = json.loads((compile(Scatter(), tmp_path / "a", example=torch.randn(3, 4)) / "program.json").read_text())
    assert [state["max_threads"] for state in program["states"]] == [1]


def test_a_folder_that_exists_is_replaced_only_on_demand(tmp_path: Path) -> None:
    example = torch.randn(3, 4)
    first = compile(nn.Linear(4, 2), tmp_path / "a", example=example)
    before = load(first).digest
    with pytest.raises(PliantError, match="exists already"):
        compile(nn.Linear(4, 2), tmp_path / "a", example=example)
    assert load(first).digest == before
    compile(nn.Linear(4, 3), tmp_path / "a", example=example, replace=True)
    assert load(first).digest != before


class Cummax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, 1)[0]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PliantError, match="cummax"):
        compile(Cummax(), tmp_path / "a", example=torch.randn(3, 4))
    assert list(tmp_path.iterdir()) == []


def test_impossible_wishes_are_refused(family_net: Elastic, tmp_path: Path) -> None:
    with pytest.raises(PliantError, match=r"no example input. pass example= or data="):
        compile(nn.Linear(4, 2), tmp_path / "a")
    with pytest.raises(ValueError, match="configs choose sub-networks of an Elastic"):
        compile(nn.Linear(4, 2), tmp_path / "a", example=torch.randn(2, 4), configs=[Config({})])
    with pytest.raises(ValueError, match="no configs"):
        compile(family_net, tmp_path / "a", configs=[])
    with pytest.raises(ValueError, match="no knob 'width:nothing'"):
        compile(family_net, tmp_path / "a", configs=Config({"width:nothing": 3}))
    with pytest.raises(TypeError, match="a Front, configs or points, got int"):
        compile(family_net, tmp_path / "a", configs=3)


def test_the_card_says_what_was_measured_and_how(artifact: Path) -> None:
    card = json.loads((artifact / "card.json").read_text())
    text = (artifact / "card.md").read_text()
    assert card["data"]["train"] == 320
    assert card["conditions"]["threads"] == 1
    assert card["sizes"]["graphs"] == sum(path.stat().st_size for path in artifact.glob("*.onnx"))
    assert "Unknown" in card["licence"]
    for entry in card["entries"]:
        assert f"{entry['measured']['accuracy']:.5g}" in text
    assert card["conditions"]["machine"] in text


def test_verify_tries_every_entry_and_tells_the_digest(artifact: Path) -> None:
    report = verify(artifact)
    assert report["sha256"] == load(artifact).digest
    assert report["entries"] == len(load(artifact))
    assert 0 <= report["max_rel_error"] < 1e-4
    assert load(artifact, sha256=report["sha256"]).name == "Residual"


def test_verify_names_the_damaged_file(tmp_path: Path) -> None:
    path = compile(nn.Linear(4, 2), tmp_path / "a", example=torch.randn(3, 4))
    weights = bytearray((path / "weights.bin").read_bytes())
    weights[3] ^= 1
    (path / "weights.bin").write_bytes(weights)
    with pytest.raises(PliantError, match=r"a/weights.bin: was changed after it was written.*compile it anew"):
        verify(path)
