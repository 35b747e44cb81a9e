"""serve-memory: disk, memory and latency of six sub-networks in one artifact, over artifacts of one each.

`ram_ratio` and `latency_ratio_b8` are of a network of matrix products (4 blocks, 768 features, hidden 384 to 3072),
`conv_latency_ratio` of the trained convolutional family. Memory is the growth of the proportional set size over
importing onnxruntime, in a process of its own, after every sub-network has run twice.
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
from pliant_runtime import Family, load
from pliant_runtime.serving.model import samples

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
x = np.zeros((8, int(sys.argv[2])), np.float32)
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


def run(features: int = 768, hidden: int = 3072) -> Outcome:
    """The row."""
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        net, configs = matmul_family(features, hidden)
        everything = load(compiled(net, Path(folder) / "all", configs=configs))
        alone = [load(compiled(net, Path(folder) / f"one{n}", configs=c)) for n, c in enumerate(configs)]
        together, single = _grown(everything.path, features), _grown(alone[0].path, features)
        inputs = np.random.default_rng(0).standard_normal((8, features)).astype(np.float32)
        figures = {
            "disk_ratio": _bytes(everything.path) / _bytes(alone[0].path),
            "ram_ratio": together / single,
            "latency_ratio_b8": _ratio(everything, alone, inputs),
        }
    path = serving.artifact()
    family = load(path)
    figures["conv_latency_ratio"] = _again(family, path)
    with serving.server(path, 0.5, "--workers", "3") as (running, _):
        while len(serving.processes(running.pid)) < 4:
            time.sleep(0.05)
        time.sleep(1.0)
        first, *workers = serving.processes(running.pid)
        figures["worker_mb"] = median(serving.pss_mb(pid) for pid in workers)
        settings = {"one_mb": single, "six_mb": together, "parent_mb": serving.pss_mb(first)}
    return Outcome(figures, "random weights for the matrix products; " + serving.DATA, [0], settings=settings)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _grown(path: Path, features: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(features)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _ratio(family: Family, alone: list[Family], inputs: np.ndarray) -> float:
    """Median over the sub-networks of the time inside the family over that in an artifact of its own."""
    ratios = []
    for number, own in enumerate(alone):
        calls = {"family": partial(family.run, inputs, entry=number), "own": partial(own.run, inputs)}
        times = {name: min(each) for name, each in interleaved(calls, 15).items()}
        ratios.append(times["family"] / times["own"])
    return median(ratios)


def _again(family: Family, path: Path) -> float:
    """Median over the sub-networks of the time beside five others over that in a process state of its own."""
    x = samples(family, 8)[0]
    ratios = []
    for number in range(len(family)):
        own = load(path)  # only this sub-network of it is opened
        calls = {"family": partial(family.run, x, entry=number), "own": partial(own.run, x, entry=number)}
        times = {name: min(each) for name, each in interleaved(calls, 15).items()}
        ratios.append(times["family"] / times["own"])
    return median(ratios)
