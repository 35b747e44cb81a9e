"""graph-cost: what tracing, switching and extracting cost.

ResNet-50 and GPT-2 small with random weights. CPU seconds of one thread, the least of interleaved runs, scaled by the
same run's float32 1024^3 matrix product over 18.7 ms. The speed of an extracted network is compared with that of a
narrower network of the same class written by hand; a second copy of the latter shows the noise.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import pliant
from bench._common import REFERENCE_MATMUL_MS, Outcome, interleaved, matmul_ms, one_thread
from bench._resnet50 import ResNet50
from pliant.core import call, seeded
from pliant.elastic import Elastic

REQUIRED = (
    "resnet50_cpu_s", "gpt2_cpu_s", "switch_ms", "extracted_speed_ratio", "extracted_parameters_ratio",
)  # fmt: skip
TRACES, CHECKS, SPEEDS, SWITCHES = 5, 3, 100, 300
NOISE = 0.02  # two copies of one network come out closer than this by luck; nothing below it is called a difference


def gpt2() -> nn.Module:
    """GPT-2 small: 12 layers, 124 M parameters, random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    net: nn.Module = GPT2LMHeadModel(GPT2Config(use_cache=False))
    return net


def run() -> Outcome:
    """The whole row."""
    one_thread()
    torch.manual_seed(0)
    nets: dict[str, tuple[nn.Module, Any]] = {
        "resnet50": (ResNet50().eval(), torch.randn(2, 3, 224, 224)),
        "gpt2": (gpt2().eval(), {"input_ids": torch.randint(0, 50257, (2, 64))}),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = tracing(nets)
        figures |= switching(nets)
        figures |= extraction()
    figures |= {f"{name}_parameters": count(net) for name, (net, _) in nets.items()}
    settings = {
        "runs": TRACES, "runs_with_check": CHECKS, "inputs": "2 x 3 x 224 x 224; 2 x 64 tokens",
        "extracted_speed_ratio": "CPU time of the network written by hand over that of the extracted one, worse of two",
        "extracted_speed_beyond_noise": "how many of the two are slower than written by hand by more than the noise",
        "cpu_s": "pliant.trace: export and analysis; checked_cpu_s: pliant.elastic, with copy and permutation check",
    }  # fmt: skip
    return Outcome(figures, "random inputs", [0], settings=settings)


def count(net: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


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
