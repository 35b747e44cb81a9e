"""serve-memory: disk, memory and latency of six sub-networks in one artifact, over artifacts of one each.

Two networks of matrix products: feed-forward blocks (768 features, hidden 1536 to 3072, 75 MB) and a vision transformer
(384 features, heads, hidden widths and blocks bend, 43 MB); each figure is that of the worse one. The artifacts are
what `compile` makes of them by itself. `conv_latency_ratio` is of a residual network, whose disk counts too (its
sub-networks have weights of their own in memory). Weights are as initialised, which changes no latency. Memory is the
growth of the proportional set size over importing onnxruntime, in a process of its own, after every sub-network has run
twice; `worker_mb` is what one more process of the server adds.
"""

import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from bench import _serving as serving
from bench._common import Outcome, interleaved, one_thread
from pliant.deploy import compile as compiled
from pliant.elastic import Elastic, elastic
from pliant.nets import resnet, vit
from pliant_runtime import Family, load

REQUIRED = ("disk_ratio", "ram_ratio", "latency_ratio_b8", "conv_latency_ratio", "worker_mb")
WIDTHS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)

CHILD = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
from pliant_runtime import load
def pss():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
onnxruntime.get_available_providers()
before = pss()
family = load(sys.argv[1])
x = np.load(sys.argv[2])
for number in range(len(family)):
    for _ in range(2):
        family.run(x, entry=number)
print(pss() - before)
"""


class Block(nn.Module):
    """A residual feed-forward block."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(features), nn.Linear(features, hidden), nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


def matmul_family(features: int, hidden: int) -> tuple[Elastic, list[dict[str, int]]]:
    """Four blocks whose hidden units bend together, and six of their widths."""
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block(features, hidden) for _ in range(4)), nn.Linear(features, 10))
    choices = {"width:*up": tuple(sorted(int(hidden * share) // 8 * 8 for share in WIDTHS))}
    net = elastic(blocks, torch.randn(2, features), choices=choices)
    whole = dict(net.space.largest())
    knobs = [name for name in whole if name.startswith("width:") and name.endswith("up")]
    return net, [whole | {name: int(hidden * share) // 8 * 8 for name in knobs} for share in WIDTHS]


def transformer_family(features: int, blocks: int) -> tuple[Elastic, list[dict[str, int]]]:
    """A vision transformer that keeps its features, and six of its sub-networks."""
    torch.manual_seed(0)
    hidden = tuple(sorted(int(4 * features * share) // 8 * 8 for share in WIDTHS))
    choices = {"heads:*": tuple(range(1, 7)), "width:*fc1": hidden}
    net = elastic(vit((3, 32, 32), 10, dim=features, depth=blocks, heads=6), torch.randn(2, 3, 32, 32), choices=choices)
    whole = dict(net.space.largest())
    return net, [_smaller(net, whole, share) for share in WIDTHS]


def _smaller(net: Elastic, whole: dict[str, int], share: float) -> dict[str, int]:
    """Heads and hidden widths near a share of all; under 0.7 without the last block too."""
    bending = [name for name in whole if name.startswith("heads:") or name.endswith("fc1")]
    config = whole | {
        name: min(net.space[name].choices, key=lambda c: abs(c - share * whole[name])) for name in bending
    }
    last = sorted(name for name in whole if name.startswith("depth:"))[-2:]
    return config | dict.fromkeys(last, False) if share < 0.7 else config


def convolution_family(width: int) -> tuple[Elastic, list[dict[str, int]]]:
    """A residual network, and six of its widths."""
    torch.manual_seed(0)
    net = elastic(resnet((3, 32, 32), 10, blocks=(2, 2, 2), width=width), torch.randn(2, 3, 32, 32))
    shares = (1.0, 0.75, 0.5, 0.25)
    configs = [dict(net.space.uniform(share)) for share in shares]
    depths = [name for name in configs[0] if name.startswith("depth:")]
    configs += [config | dict.fromkeys(depths[-1:], False) for config in configs[:2]]
    return net, configs


def run(features: int = 768, transformer: int = 384, width: int = 32) -> Outcome:
    """The row.

    Args:
        features: of the feed-forward blocks, whose hidden width is four times that.
        transformer: features of the vision transformer.
        width: channels of the residual network's first stage.
    """
    one_thread()
    settings: dict[str, object] = {}
    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        feed = np.random.default_rng(0).standard_normal((8, features)).astype(np.float32)
        pictures = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
        made = {
            "blocks": (matmul_family(features, 4 * features), feed),
            "transformer": (transformer_family(transformer, 6), pictures),
        }
        for name, ((net, configs), inputs) in made.items():
            figures, facts = _compared(Path(folder) / name, net, configs, inputs)
            settings[name] = figures | facts
            worst = {key: max(value, worst.get(key, 0.0)) for key, value in figures.items()}
        net, configs = convolution_family(width)
        figures, facts = _compared(Path(folder) / "convolutions", net, configs, pictures)
        settings["convolutions"] = figures | facts
        worst["disk_ratio"] = max(worst["disk_ratio"], figures["disk_ratio"])
        worst["conv_latency_ratio"] = figures["latency_ratio_b8"]
        worst["worker_mb"], settings["parent_mb"] = _workers(Path(folder) / "blocks" / "all")
    return Outcome(worst, "weights as initialised, random inputs", [0], settings=settings)


def _compared(
    folder: Path, net: Elastic, configs: list[dict[str, int]], inputs: np.ndarray
) -> tuple[dict[str, float], dict[str, object]]:
    """Six in one artifact, beside an artifact for each."""
    folder.mkdir()
    everything = load(compiled(net, folder / "all", configs=configs))
    alone = [load(compiled(net, folder / f"one{number}", configs=config)) for number, config in enumerate(configs)]
    np.save(folder / "inputs.npy", inputs)
    together, single = (_grown(family.path, folder / "inputs.npy") for family in (everything, alone[0]))
    layout = everything.program.layout
    figures = {
        "disk_ratio": _bytes(everything.path) / _bytes(alone[0].path),
        "ram_ratio": together / single,
        "latency_ratio_b8": _ratio(everything, alone, inputs),
    }
    facts: dict[str, object] = {
        "form": layout.form if layout is not None else "",
        "why": layout.why if layout is not None else "",
        "one_mb": single,
        "six_mb": together,
        "dynamic_range_b8": everything.program.conditions["dynamic_range_b8"],
        "disk_mb": _bytes(alone[0].path) / 1e6,
    }
    return figures, facts


def _workers(path: Path) -> tuple[float, float]:
    """Megabytes of one more process, and of the first."""
    with serving.server(path, 1.0, "--workers", "3") as (running, _):
        while len(serving.processes(running.pid)) < 4:
            time.sleep(0.05)
        time.sleep(1.0)
        first, *workers = serving.processes(running.pid)
        return median(serving.pss_mb(pid) for pid in workers), serving.pss_mb(first)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _grown(path: Path, inputs: Path) -> float:
    command = [sys.executable, "-c", CHILD, str(path), str(inputs)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _ratio(family: Family, alone: list[Family], inputs: np.ndarray) -> float:
    """Median over the sub-networks of the time inside the family over that in an artifact of its own."""
    ratios = []
    for number, own in enumerate(alone):
        calls = {"family": partial(family.run, inputs, entry=number), "own": partial(own.run, inputs)}
        times = {name: min(each) for name, each in interleaved(calls, 25).items()}
        ratios.append(times["family"] / times["own"])
    return median(ratios)
