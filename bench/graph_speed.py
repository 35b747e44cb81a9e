"""graph-speed: what tracing, switching, extracting and training slices cost.

CPU seconds of one thread, the least of interleaved runs. Seconds that stand alone are scaled by the same run's float32
1024^3 matrix product over 18.7 ms.

A training step is forward, cross-entropy, backward and optimizer at batch 32, as `pliant.train` does it with the family
at half its widths, over the same step of the extracted network with a plain torch optimizer; the worse of AdamW and SGD
with momentum. Each network is measured in a process of its own. In every round each contestant takes two steps, of
which the second counts, because training takes one step after the other. ResNet-50 on 64 x 64 pixels, ViT-S on 64
tokens, GPT-2 small on 16 tokens.

`memory_over_full` is the peak memory of three AdamW steps of the family at half its widths over that of the original,
whole network: the highest resident set of a fresh process less what it held before the network was built, with weights,
gradients, optimizer state and activations. Freed memory is handed back before the first step.

The speed of an extracted network is compared with that of a narrower network of the same class written by hand; a
second copy of the latter shows the noise.
"""

import ctypes
import gc
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pliant
from bench._common import REFERENCE_MATMUL_MS, Outcome, interleaved, matmul_ms, one_thread
from bench._resnet50 import ResNet50
from pliant.core import Config, call, main_output, seeded
from pliant.elastic import Elastic
from pliant.elastic.recipes._base import ElasticRecipe
from pliant.learn import Plain, Recipe

REQUIRED = (
    "resnet50_step_ratio", "vit_s_step_ratio", "gpt2_step_ratio", "memory_over_full", "switch_ms", "resnet50_cpu_s",
    "gpt2_cpu_s", "extract_s", "extracted_speed_ratio", "extracted_speed_beyond_noise", "extracted_parameters_ratio",
)  # fmt: skip
TRACES, CHECKS, EXTRACTS, STEPS, SPEEDS, SWITCHES = 5, 2, 5, 7, 100, 300
NOISE = 0.02  # two copies of one network come out closer than this by luck; nothing below it is called a difference
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-4),
    "sgd": partial(torch.optim.SGD, lr=1e-4, momentum=0.9),
}


def gpt2() -> nn.Module:
    """GPT-2 small: 12 layers, 124 M parameters, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    net: nn.Module = GPT2LMHeadModel(GPT2Config(use_cache=False))
    return net


def _images(size: int, batch: int) -> Tensor:
    return torch.randn(batch, 3, size, size)


def _tokens(length: int, batch: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 50257, (batch, length))}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "resnet50": (ResNet50, partial(_images, 64)),
    "vit_s": (partial(pliant.nets.vit, (3, 64, 64), 1000, patch=8, dim=384, depth=12, heads=6), partial(_images, 64)),
    "gpt2": (gpt2, partial(_tokens, 16)),
}
"""What takes training steps: its factory, and inputs for a batch size."""


def run() -> Outcome:
    """The whole row."""
    begun = time.process_time()
    one_thread()
    torch.manual_seed(0)
    figures, elsewhere = training()
    nets: dict[str, tuple[nn.Module, Any]] = {
        "resnet50": (ResNet50().eval(), _images(224, 2)),
        "gpt2": (gpt2().eval(), _tokens(64, 2)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures |= tracing(nets)
        figures |= switching(nets)
        figures |= extraction()
    figures |= {f"{name}_parameters": count(net) for name, (net, _) in nets.items()}
    settings = {
        "runs": TRACES, "runs_with_check": CHECKS, "steps": STEPS, "inputs": "2 x 3 x 224 x 224; 2 x 64 tokens",
        "step_inputs": "32 x 3 x 64 x 64; 32 x 3 x 64 x 64 in patches of 8; 32 x 16 tokens",
        "step_ratio": "CPU time of a sliced step over the extracted network's, both at half width",
        "memory_over_full": "peak memory of sliced steps at half width over that of the whole network's own",
        "extracted_speed_ratio": "CPU time of the network written by hand over that of the extracted one, worse of two",
        "extracted_speed_beyond_noise": "how many of the two are slower than written by hand by more than the noise",
        "cpu_s": "pliant.trace: export and analysis; checked_cpu_s: pliant.elastic, with copy and permutation check",
    }  # fmt: skip
    seconds = time.process_time() - begun + elsewhere
    return Outcome(figures, "random inputs", [0], settings=settings, cpu_seconds=seconds)


def count(net: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


# -- training steps ---------------------------------------------------------------------------------------------------


def training() -> tuple[dict[str, float], float]:
    """The figures of all networks' steps, and the CPU seconds that their processes took."""
    figures: dict[str, float] = {}
    seconds = 0.0
    for name in MODELS:
        found, spent = _alone(steps, name)
        memory = {}
        for who in ("sliced", "full"):
            memory[who], more = _alone(peak, (name, who == "sliced"))
            spent += more
        figures |= found
        figures |= {f"{name}_{who}_mib": value / 2**20 for who, value in memory.items()}
        figures[f"{name}_memory_over_full"] = memory["sliced"] / memory["full"]
        seconds += spent
    figures["memory_over_full"] = max(figures[f"{name}_memory_over_full"] for name in MODELS)
    figures["extract_s"] = max(figures[f"{name}_extract_s"] for name in MODELS)
    return figures, seconds


def _alone(work: Callable[[Any], Any], job: Any) -> tuple[Any, float]:
    """`work(job)` in a fresh process, and the CPU seconds it took there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_timed, work, job).result()


def _timed(work: Callable[[Any], Any], job: Any) -> tuple[Any, float]:
    one_thread()
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    return work(job), time.process_time()


def step_of(net: nn.Module, recipe: Recipe, optimizer: torch.optim.Optimizer, batch: Any) -> Callable[[], None]:
    """A training step."""

    def step() -> None:
        recipe.step(net, batch, _loss).backward()  # type: ignore[no-untyped-call]
        recipe.update(net, optimizer)
        optimizer.zero_grad()

    return step


def _loss(output: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(main_output(output).flatten(0, -2), targets.flatten())


def _batch(name: str) -> tuple[Any, Tensor]:
    inputs = MODELS[name][1](32)
    return inputs, inputs["input_ids"] if isinstance(inputs, dict) else torch.randint(0, 1000, (32,))


def family(name: str) -> Elastic:
    """A network made elastic."""
    factory, inputs = MODELS[name]
    return pliant.elastic(factory(), inputs(2), verbose=False, check=False).train()


@final
@dataclass(frozen=True)
class Halved(ElasticRecipe):
    """Trains one sub-network: half of everything."""

    def draw(self, net: Elastic, generator: torch.Generator) -> list[Config]:
        """That one."""
        return [net.space.uniform(0.5)]


def steps(name: str) -> dict[str, float]:
    """CPU milliseconds of a sliced step and of the extracted network's, and their ratio for the worse optimizer.

    Also the seconds that the extraction takes.
    """
    net, batch = family(name), _batch(name)
    half, products = net.space.uniform(0.5), list[float]()
    taken = interleaved({"net": lambda: net.extract(half), "matmul": lambda: products.append(matmul_ms())}, EXTRACTS)
    figures = {f"{name}_extract_s": min(taken["net"]) * REFERENCE_MATMUL_MS / min(products)}
    small = net.extract(half).train()
    for kind, make in OPTIMIZERS.items():
        contestants = {
            "sliced": step_of(net, Halved(), make(net.parameters()), batch),
            "extracted": step_of(small, Plain(), make(small.parameters()), batch),
        }
        interleaved(contestants, 1)
        twice = {f"{who} {i}": step for who, step in contestants.items() for i in (1, 2)}
        times = interleaved(twice, STEPS)
        for who in contestants:
            figures[f"{name}_{who}_{kind}_ms"] = min(times[f"{who} 2"]) * 1e3
        ratio = figures[f"{name}_sliced_{kind}_ms"] / figures[f"{name}_extracted_{kind}_ms"]
        figures[f"{name}_{kind}_ratio"] = ratio
    return {f"{name}_step_ratio": max(figures[f"{name}_{kind}_ratio"] for kind in OPTIMIZERS), **figures}


def peak(job: tuple[str, bool]) -> float:
    """Peak bytes of three AdamW steps: of the family at half its widths, or else of the whole original (Linux only)."""
    name, sliced = job
    pliant.elastic(
        pliant.nets.mlp((64,), 10), torch.randn(2, 64), verbose=False
    )  # whatever tracing loads is loaded now
    before = _memory("VmRSS")
    net: nn.Module = family(name) if sliced else MODELS[name][0]().train()
    step = step_of(net, Halved() if sliced else Plain(), OPTIMIZERS["adamw"](net.parameters()), _batch(name))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    for _ in range(3):
        step()
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """A line of the kernel's account of this process, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[field].split()[0]) * 1024


# -- what stands alone ------------------------------------------------------------------------------------------------


def tracing(nets: dict[str, tuple[nn.Module, Any]]) -> dict[str, float]:
    """CPU seconds of `pliant.trace` and of `pliant.elastic`."""
    products: list[float] = []
    calls: dict[str, Callable[[], Any]] = {name: partial(pliant.trace, *each) for name, each in nets.items()}
    calls["matmul"] = lambda: products.append(matmul_ms())
    traces = interleaved(calls, TRACES)
    full = interleaved({name: partial(pliant.elastic, *each, verbose=False) for name, each in nets.items()}, CHECKS)
    reference = min(products)
    scale = REFERENCE_MATMUL_MS / reference
    figures = {"matmul_ms": reference}
    for name in nets:
        figures[f"{name}_cpu_s"] = min(traces[name]) * scale
        figures[f"{name}_checked_cpu_s"] = min(full[name]) * scale
        figures[f"{name}_unscaled_cpu_s"] = min(traces[name])
    return figures


def switching(nets: dict[str, tuple[nn.Module, Any]]) -> dict[str, float]:
    """Median milliseconds of `activate` between random sub-networks."""
    figures = {}
    for name, (module, example) in nets.items():
        net = pliant.elastic(module, example, verbose=False, check=False)
        generator = seeded(0, "bench", "switch")
        times = []
        for config in [net.sample(generator) for _ in range(SWITCHES)]:
            begun = time.process_time()
            net.activate(config)
            times.append(time.process_time() - begun)
        figures[f"switch_ms_{name}"] = statistics.median(times) * 1e3
        figures[f"subnetworks_{name}"] = min(float(net.space.size), 1e300)
    return {"switch_ms": max(value for key, value in figures.items() if key.startswith("switch")), **figures}


def extraction() -> dict[str, float]:
    """Extracted networks against narrower ones written by hand."""
    image, text = torch.randn(16, 3, 32, 32), torch.randint(0, 65, (8, 64))
    pairs: dict[str, tuple[Any, dict[str, int], dict[str, int], torch.Tensor]] = {
        "resnet": (partial(pliant.nets.resnet, blocks=(2, 2, 2)), {"width": 32}, {"width": 16}, image),
        "gpt": (pliant.nets.gpt, {"dim": 256, "heads": 4}, {"dim": 128, "heads": 2}, text),
    }
    figures: dict[str, float] = {}
    for name, (factory, large, narrow, inputs) in pairs.items():
        net = pliant.elastic(factory(**large).eval(), inputs[:2], verbose=False)
        compared = _compared(net, partial(factory, **narrow), inputs)
        figures |= {f"{key}_{name}": value for key, value in compared.items()}
    worst = min(figures["speed_resnet"], figures["speed_gpt"])
    parameters = max((figures["parameters_resnet"], figures["parameters_gpt"]), key=lambda ratio: abs(ratio - 1))
    slower = [name for name in pairs if 1 - figures[f"speed_{name}"] > figures[f"noise_{name}"]]
    return {
        "extracted_speed_ratio": worst,
        "extracted_speed_beyond_noise": len(slower),
        "extracted_parameters_ratio": parameters,
        **{f"extracted_{name}": value for name, value in figures.items()},
    }


def _compared(net: Elastic, narrow: Callable[[], nn.Module], inputs: Any) -> dict[str, float]:
    """Speed and parameters of the half-size sub-network over those of `narrow`, which it is checked to fill."""
    half = net.space.uniform(0.5)
    extracted = net.extract(half).eval()
    written, again = net.extract(half, into=narrow().eval()), narrow().eval()
    modules = {"extracted": extracted, "written": written, "again": again}
    with torch.no_grad():
        calls = {name: partial(_four_times, module, inputs) for name, module in modules.items()}
        interleaved(calls, 3)
        times = {name: min(each) for name, each in interleaved(calls, SPEEDS).items()}
    return {
        "speed": times["written"] / times["extracted"],
        "noise": max(NOISE, abs(times["written"] / times["again"] - 1)),
        "parameters": count(extracted) / count(written),
    }


def _four_times(module: nn.Module, inputs: Any) -> None:
    for _ in range(4):
        call(module, inputs)
