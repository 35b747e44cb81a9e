"""Accuracy predicted from the text of a network's ONNX graph, in a search space that the predictor never saw."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bench._common import ROOT, Outcome, cached, in_workers, one_thread, sources
from pliant import nets
from pliant.export import network_text, to_onnx
from pliant.search.predictors import fit_text
from pliant.search.predictors.quality import kendall_tau
from pliant.search.predictors.text import amounts

REQUIRED = ("gain_over_random", "gain_over_rival")
SPACES = ("resnet", "dwsep", "mlp", "vit")
NETWORKS, EPOCHS, SEEDS = 80, 4, (0,)
_SHAPE, _CLASSES, _TRAIN = (1, 8, 8), 10, 1200
_CHUNK = 10
_FIRST = 1000  # earlier draws served to design the predictor
VERSION = 1  # of the spaces and of how networks are trained; raise it when that changes


@dataclass(frozen=True)
class Chunk:
    """Some networks of a space.

    Args:
        space: one of `SPACES`.
        first, count: which draws.
        epochs: of training.
    """

    space: str
    first: int
    count: int
    epochs: int


def drawn(space: str, number: int) -> nn.Module:
    """The `number`-th random network of a space."""
    rng = np.random.default_rng([SPACES.index(space), number])

    def one(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    torch.manual_seed(number)
    if space == "resnet":
        return nets.resnet(_SHAPE, _CLASSES, blocks=[one(1, 2) for _ in range(one(1, 2, 3))], width=one(2, 3, 4, 6, 8))
    if space == "dwsep":
        depth = one(1, 2, 3, 4)
        channels, strides = [one(4, 8, 16, 24, 32) for _ in range(depth)], [one(1, 1, 2) for _ in range(depth)]
        kind = one("relu6", "gelu", "tanh")
        return nets.dwsep(_SHAPE, _CLASSES, stem=one(4, 8, 12), channels=channels, strides=strides, activation=kind)
    if space == "mlp":
        hidden = [one(4, 8, 16, 32, 64) for _ in range(one(1, 2, 3))]
        return nets.mlp(_SHAPE, _CLASSES, hidden=hidden, activation=one("relu", "gelu", "tanh"))
    heads = one(1, 2, 4)
    size = {"patch": one(2, 4), "dim": heads * one(4, 8, 12), "depth": one(1, 2, 3), "heads": heads}
    return nets.vit(_SHAPE, _CLASSES, pool=one("token", "mean"), **size)


def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return torch.tensor(x[order].reshape(-1, *_SHAPE) / 16 - 0.3).float(), torch.tensor(y[order])


def accuracy(net: nn.Module, epochs: int, seed: int) -> float:
    """On 597 test images, after training on 1,200: AdamW, learning rate 3e-3, batches of 64."""
    x, y = _digits()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    net.train()
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(_TRAIN, generator=generator), 64):
            loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    net.eval()
    with torch.no_grad():
        return float((net(x[_TRAIN:]).argmax(1) == y[_TRAIN:]).float().mean())


def measured(chunk: Chunk) -> dict[str, Any]:
    """Texts and accuracies of some networks, from the cache where they are known."""

    def make(folder: Path) -> dict[str, Any]:
        one_thread()
        begun = time.process_time()
        texts, values = [], []
        for number in range(chunk.first, chunk.first + chunk.count):
            net = drawn(chunk.space, number)
            values.append(accuracy(net, chunk.epochs, number))
            texts.append(network_text(to_onnx(net, torch.zeros(2, *_SHAPE), check=False)))
        return {"texts": texts, "values": values, "cpu_seconds": time.process_time() - begun}

    what = {"row": "onnx-net", "chunk": asdict(chunk), "version": VERSION, "torch": torch.__version__}
    return cached(what | {"sources": sources(str(ROOT / "pliant" / "export" / "network_text.py"), ("nets",))}, make)[1]


def transferred(texts: dict[str, list[str]], values: dict[str, NDArray[np.float64]], left: str) -> dict[str, float]:
    """Rank correlations in the space that is left out: of the predictor fitted to the others, and of its rivals."""
    others = [space for space in texts if space != left]
    known = [text for space in others for text in texts[space]]
    groups = [space for space in others for _ in texts[space]]
    model = fit_text(known, targets=np.concatenate([values[space] for space in others]), groups=groups)
    sizes = amounts(texts[left])
    ranked = {"text": model.mean(texts[left]), "parameters": sizes[:, 0], "flops": sizes[:, 1]}
    print(f"  {left}: reads {model.reading}", flush=True)
    taus = {name: kendall_tau(scores, values[left]) for name, scores in ranked.items()}
    rng = np.random.default_rng(0)
    chance = [kendall_tau(rng.random(len(sizes)), values[left]) for _ in range(100)]
    return taus | {"random": float(np.mean(chance))}


def run(networks: int = NETWORKS, epochs: int = EPOCHS, spaces: Sequence[str] = SPACES) -> Outcome:
    """The row.

    Args:
        networks: of each space, a multiple of 10.
        epochs: of each training.
        spaces: at least three.
    """
    firsts = range(_FIRST, _FIRST + networks, _CHUNK)
    chunks = [Chunk(space, first, _CHUNK, epochs) for first in firsts for space in spaces]
    facts = dict(zip(chunks, in_workers(partial(measured), chunks), strict=True))
    texts = {s: [text for c in chunks if c.space == s for text in facts[c]["texts"]] for s in spaces}
    values = {s: np.asarray([v for c in chunks if c.space == s for v in facts[c]["values"]]) for s in spaces}
    found = {space: transferred(texts, values, space) for space in spaces}
    means = {name: float(np.mean([taus[name] for taus in found.values()])) for name in next(iter(found.values()))}
    figures = {
        "tau": means["text"], "gain_over_random": means["text"] - means["random"],
        "gain_over_rival": means["text"] - means["flops"],
        "gain_over_parameters": means["text"] - means["parameters"], "networks": networks * len(spaces),
    }  # fmt: skip
    figures |= {f"tau_{space}": taus["text"] for space, taus in found.items()}
    return Outcome(
        figures, "8 x 8 digits: 1,200 images to train on, 597 to judge; random networks of four spaces", SEEDS,
        baseline={"tau": means["flops"]} | {f"tau_{space}": taus["flops"] for space, taus in found.items()},
        cpu_seconds=sum(fact["cpu_seconds"] for fact in facts.values()),
        settings={
            "task": "each space in turn is left out; Kendall's tau of predicted and measured accuracy in it",
            "rival": "ranking by FLOPs, the paper's zero-shot proxy; ranking by parameters is told apart",
            "epochs": epochs, "mean_tau": means, "tau": found,
        },
    )  # fmt: skip
