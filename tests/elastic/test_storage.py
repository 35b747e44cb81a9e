"""Elastic networks on disk."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pliant import nets
from pliant.core import PliantError, seeded
from pliant.elastic import Elastic, elastic, storage

ROOT = Path(__file__).parents[2]


def _images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=seeded(0, "images"))


def _ids() -> Tensor:
    return torch.randint(11, (3, 12), generator=seeded(0, "ids"))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (lambda: nets.mlp((3, 8, 8), 5, hidden=(16, 12), dropout=0.2), _images),
    "resnet": (lambda: nets.resnet((3, 8, 8), 5, blocks=(1, 2), width=8), _images),
    "gpt": (lambda: nets.gpt((12,), 11, dim=16, depth=2, heads=4), _ids),
}


def make(name: str) -> tuple[Elastic, Tensor]:
    torch.manual_seed(0)
    build, example = NETS[name]
    return elastic(build(), example(), verbose=False), example()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net, _ = make("mlp")
    net.save(tmp_path / "net")
    return tmp_path / "net"


def run(net: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        out: Tensor = net(x)
    return out


@pytest.mark.parametrize("name", NETS)
def test_what_was_saved_comes_back(name: str, tmp_path: Path) -> None:
    net, x = make(name)
    configs = [net.space.smallest(), net.space.largest(), *(net.sample(g) for g in [seeded(0, "s")] for _ in range(3))]
    net.activate(configs[2])
    net.eval().save(tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["graph.json", "tensors.safetensors"]
    back = Elastic.load(tmp_path / "net")
    assert (back.space, back.active, back.name, back.training) == (net.space, net.active, net.name, False)
    assert torch.equal(back.example, net.example)
    assert str(back.report()) == str(net.report())
    assert list(back.state_dict()) == list(net.state_dict())
    for training in (False, True):
        for config in configs:
            net.train(training).activate(config)
            back.train(training).activate(config)
            assert torch.equal(run(back, x), run(net, x))
            assert back.cost(config) == net.cost(config)
            assert torch.equal(run(back.extract(config), x), run(net.extract(config), x))
    for key, tensor in net.state_dict().items():  # statistics that training moved are the same as well
        assert torch.equal(back.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_a_loaded_network_trains_on(name: str, tmp_path: Path) -> None:
    net, x = make(name)
    net.save(tmp_path / "net")
    back = Elastic.load(tmp_path / "net")
    assert back.training
    for one in (net, back):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        for _ in range(2):
            torch.manual_seed(2)
            one(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in net.state_dict().items())


def test_frozen_parameters_and_tied_weights_come_back(tmp_path: Path) -> None:
    model: Any = NETS["gpt"][0]()
    model.positions.weight.requires_grad_(False)
    net = elastic(model, _ids(), verbose=False)
    net.save(tmp_path / "net")
    back = Elastic.load(tmp_path / "net")
    assert [key for key, p in back.named_parameters() if not p.requires_grad] == ["positions.weight"]
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in net.parameters())
    back.load_state_dict(model.state_dict())


def test_a_loaded_network_does_not_hang_on_the_file(saved: Path) -> None:
    back = Elastic.load(saved)
    before = run(back.eval(), _images())
    data = (saved / "tensors.safetensors").read_bytes()
    (saved / "tensors.safetensors").write_bytes(bytes(len(data)))
    assert torch.equal(run(back, _images()), before)


_LOADER = """
import sys, torch
from safetensors.torch import load_file
from pliant.elastic import Elastic
net = Elastic.load(sys.argv[1])
data = load_file(sys.argv[2])
with torch.no_grad():
    assert torch.equal(net(data["x"]), data["y"])
    assert torch.equal(net.extract(net.space.smallest())(data["x"]), data["small"])
assert "test_storage" not in "".join(sys.modules)
print(net.name, len(net.space))
"""


class Mine(nn.Module):
    """A class that another process knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.nn.functional.gelu(self.first(x)))
        return out


def test_another_process_runs_it_without_the_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    net = elastic(Mine().eval(), x, verbose=False)
    net.save(tmp_path / "net")
    small = net.extract(net.space.smallest())
    save_file({"x": x, "y": run(net, x), "small": run(small, x)}, tmp_path / "data.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", _LOADER, str(tmp_path / "net"), str(tmp_path / "data.safetensors")],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Mine", "1"]


# -- damage ------------------------------------------------------------------------------------------------------------


def _edit(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "graph.json").read_text())
    (folder / "graph.json").write_text(json.dumps(data | changes))


def _drop(folder: Path, key: str) -> None:
    data = json.loads((folder / "graph.json").read_text())
    del data[key]
    (folder / "graph.json").write_text(json.dumps(data))


def _bad_operator(folder: Path) -> None:
    nodes = json.loads((folder / "graph.json").read_text())["nodes"]
    for node in nodes:
        node[2] = "aten.nonsense.default" if node[1] == "call" else node[2]
    _edit(folder, nodes=nodes)


def _tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / "tensors.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "tensors.safetensors")


def _cut_file(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda folder: folder.rename(folder.with_name("elsewhere")), "graph.json"),
    "no graph": (lambda folder: (folder / "graph.json").unlink(), "graph.json"),
    "no tensors": (lambda folder: (folder / "tensors.safetensors").unlink(), "tensors.safetensors"),
    "half a graph": (lambda folder: _cut_file(folder, "graph.json"), "graph.json"),
    "half the tensors": (lambda folder: _cut_file(folder, "tensors.safetensors"), "tensors.safetensors"),
    "empty tensors": (lambda folder: (folder / "tensors.safetensors").write_bytes(b""), "tensors.safetensors"),
    "bytes": (lambda folder: (folder / "graph.json").write_bytes(b"\xff\xfe\x00"), "graph.json"),
    "a list": (lambda folder: (folder / "graph.json").write_text("[]"), "graph.json"),
    "another format": (lambda folder: _edit(folder, format=99), "graph.json"),
    "a missing entry": (lambda folder: _drop(folder, "nodes"), "net"),
    "names left out": (lambda folder: _drop(folder, "others"), "net"),
    "nodes of another kind": (lambda folder: _edit(folder, nodes=[["a"]]), "net"),
    "an unknown operator": (_bad_operator, "net"),
    "a wrong space": (lambda folder: _edit(folder, space={"knobs": [{"name": "x"}]}), "net"),
    "a wrong choice": (lambda folder: _edit(folder, active={"width:body.0": 1000}), "net"),
    "a tensor left out": (lambda folder: _tensors(folder, lambda t: t.pop("state.head.weight")), "net"),
    "an example left out": (lambda folder: _tensors(folder, lambda t: t.pop("example.0")), "net"),
    "a wrong shape": (
        lambda folder: _tensors(folder, lambda t: t.update({"state.head.weight": torch.zeros(5, 7)})), "net"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_with_the_place(saved: Path, name: str) -> None:
    damage, where = DAMAGE[name]
    damage(saved)
    with pytest.raises(PliantError) as caught:
        Elastic.load(saved)
    expected = saved if where == "net" else saved / where
    assert str(expected) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("hello")
    with pytest.raises(PliantError, match="net"):
        Elastic.load(tmp_path / "net")


# -- writing -----------------------------------------------------------------------------------------------------------


def test_saving_again_replaces_the_old_network(saved: Path) -> None:
    (saved / "stale").write_text("old")
    net, _ = make("gpt")
    net.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == ["graph.json", "tensors.safetensors"]
    assert Elastic.load(saved).name == "GPT"


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    net, _ = make("mlp")
    net.save(str(tmp_path / "a" / "b" / "net"))
    assert Elastic.load(str(tmp_path / "a" / "b" / "net")).space == net.space


def test_a_failed_save_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    net, _ = make("gpt")

    def fails(path: Path, data: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_json", fails)
    for place in (saved, saved.with_name("new")):
        with pytest.raises(KeyboardInterrupt):
            net.save(place)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert sorted(path.name for path in saved.parent.iterdir()) == [saved.name]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    net, _ = make("mlp")
    with pytest.raises(PliantError, match="cannot write"):
        net.save(tmp_path / "file" / "net")
    assert (tmp_path / "file").read_text() == "in the way"


class _Named(nn.Module):
    """Sub-modules by the given names, one after the other."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 8] -> [N, 8]."""
        for name in self.names:
            x = self.get_submodule(name)(x).relu()
        return x


def test_sub_modules_called_like_what_an_elastic_network_has(tmp_path: Path) -> None:
    model = _Named("space", "cost", "active", "example", "save", "head")
    x = torch.randn(3, 8)
    net = elastic(model, x)
    assert list(net.state_dict()) == list(model.state_dict())
    net.activate(net.space.uniform(0.5))
    net.save(tmp_path / "net")
    loaded = Elastic.load(tmp_path / "net")
    torch.testing.assert_close(loaded(x), net(x))
    torch.testing.assert_close(net.extract(net.active)(x), net(x))


@pytest.mark.parametrize("name", ["graph", "code", "meta"])
def test_names_that_graph_modules_need_are_refused(name: str) -> None:
    with pytest.raises(PliantError, match=f"{name}: extracted networks are torch.fx graph modules"):
        elastic(_Named("first", name), torch.randn(3, 8))
