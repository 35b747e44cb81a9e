"""One-pass networks as files: the same columns come back, in a process that knows nothing of the original's class."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pliant
from pliant import nets
from pliant.core import PliantError
from pliant.elastic import Elastic, OnePass, one_pass

ROOT = Path(__file__).parents[2]


class Mine(nn.Module):
    """A class that another process knows nothing of: tied layers, batch and layer norm, two outputs, a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.inner, self.again, self.scale = nn.Linear(16, 16, bias=False), nn.Linear(16, 16), nn.LayerNorm(16)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(16, 3)
        self.stem.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.again(torch.relu(self.inner(x))))
        logits = self.head(self.scale(x))
        return {"logits": logits, "chances": logits.softmax(-1)}


def _made(**options: Any) -> tuple[OnePass, Tensor]:
    torch.manual_seed(0)
    net, x = one_pass(Mine(), torch.randn(4, 6), **options), torch.randn(5, 6)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1 * (tensor != 0))
    for _ in range(3):
        net(torch.randn(8, 6))
    return net.eval(), x


_LOADER = """
import sys, torch
from safetensors.torch import load_file
import pliant
net = pliant.OnePass.load(sys.argv[1])
data = {name: tensor.clone() for name, tensor in load_file(sys.argv[2]).items()}  # aligned in memory
with torch.no_grad():
    assert torch.equal(net(data["x"])["logits"], data["y"])
    assert torch.equal(net.extract(2)(data["x"])["logits"], data["small"])
assert "test_one_pass_storage" not in "".join(sys.modules)
print(net.name, net.widths)
"""


@pytest.mark.parametrize("options", [{}, {"heads": "shared", "leak": 0.3, "shells": 2}])
def test_another_process_computes_the_same_columns(tmp_path: Path, options: dict[str, Any]) -> None:
    net, x = _made(**options)
    net.save(tmp_path / "net")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["graph.json", "tensors.safetensors"]
    with torch.no_grad():
        given = {"x": x, "y": net(x)["logits"].contiguous(), "small": net.extract(2)(x)["logits"]}
    save_file(given, tmp_path / "data.safetensors")
    command = [sys.executable, "-c", _LOADER, str(tmp_path / "net"), str(tmp_path / "data.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["Mine", str(net.widths)]


def test_everything_comes_back(tmp_path: Path) -> None:
    net, x = _made(leak=0.3)
    net.train().save(tmp_path / "net")
    back = OnePass.load(tmp_path / "net")
    assert (back.name, back.widths, back.leak, back.own_heads) == ("Mine", 4, 0.3, True)
    assert back.units == net.units
    assert back.training
    assert list(back.state_dict()) == list(net.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), net.state_dict().values(), strict=True))
    flags = {name: p.requires_grad for name, p in back.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in net.named_parameters()}
    assert not flags["stem.weight"]
    for each in (net, back):  # it trains on: the same gradients and statistics
        each(x)["logits"].square().mean().backward()
    for (name, one), two in zip(net.named_parameters(), back.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        assert one.grad is None or torch.equal(one.grad, two.grad), name  # type: ignore[arg-type]
    assert torch.equal(net.state("norm.running_mean"), back.state("norm.running_mean"))
    back.save(tmp_path / "again")
    assert (tmp_path / "again" / "graph.json").read_text() == (tmp_path / "net" / "graph.json").read_text()


@pytest.mark.parametrize("name", ["resnet", "gpt"])
def test_whole_architectures_come_back(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model, x = {
        "resnet": (nets.resnet((3, 8, 8), 5, blocks=(1, 1), width=8), torch.randn(2, 3, 8, 8)),
        "gpt": (nets.gpt((10,), 20, dim=16, depth=1, heads=4, tied=False), torch.randint(20, (2, 10))),
    }[name]
    net = one_pass(model, x).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.save(tmp_path / "net")
    with torch.no_grad():
        torch.testing.assert_close(OnePass.load(tmp_path / "net")(x), net(x), rtol=1e-5, atol=1e-6)


def test_each_kind_of_file_names_what_loads_it(tmp_path: Path) -> None:
    net, _ = _made()
    net.save(tmp_path / "columns")
    pliant.elastic(nets.mlp((6,), 3, hidden=(8,)), torch.randn(2, 6)).save(tmp_path / "family")
    with pytest.raises(PliantError, match=r"columns: holds a one-pass network, not an elastic .*OnePass\.load"):
        Elastic.load(tmp_path / "columns")
    with pytest.raises(PliantError, match=r"family: holds an elastic network, not a one-pass .*Elastic\.load"):
        OnePass.load(tmp_path / "family")
    text = (tmp_path / "family" / "graph.json").read_text().replace('"kind": "elastic"', '"kind": "folded"')
    (tmp_path / "family" / "graph.json").write_text(text)
    with pytest.raises(PliantError, match="holds a network of the kind 'folded'"):
        Elastic.load(tmp_path / "family")


def test_elastic_files_of_before_there_were_kinds_are_read(tmp_path: Path) -> None:
    pliant.elastic(nets.mlp((6,), 3, hidden=(8,)), torch.randn(2, 6)).save(tmp_path / "family")
    data = json.loads((tmp_path / "family" / "graph.json").read_text())
    del data["kind"]
    (tmp_path / "family" / "graph.json").write_text(json.dumps(data))
    assert Elastic.load(tmp_path / "family").name == "MLP"


DAMAGE: dict[str, tuple[str, str]] = {
    "groups": ("groups", "KeyError: 'width:nowhere'"),
    "widths": ("widths", "too few for 99 shells"),
    "rows": ("", r"head.weight is \[1, 3, 16\], the network has \[4, 3, 16\]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_with_the_place(tmp_path: Path, name: str) -> None:
    net, _ = _made()
    net.save(tmp_path / "net")
    path, (entry, told) = tmp_path / "net", DAMAGE[name]
    if entry:
        data = json.loads((path / "graph.json").read_text())
        data |= {entry: {"groups": ["width:nowhere"], "widths": 99}[entry]}
        (path / "graph.json").write_text(json.dumps(data))
    else:
        tensors = {key: tensor.clone() for key, tensor in load_file(path / "tensors.safetensors").items()}
        tensors["state.head.weight"] = tensors["state.head.weight"][:1].clone()
        save_file(tensors, path / "tensors.safetensors")
    with pytest.raises(PliantError, match=rf"net: damaged \(.*{told}"):
        OnePass.load(path)
