"""Sub-networks on their way into an artifact: extracted, exported, packed, with what torch answers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pliant.core import Config, PliantError, call, seeded
from pliant.data import Dataset
from pliant.deploy.pack import Packer, Source
from pliant.deploy.targets import Sliceable, extracted
from pliant.deploy.verify import arrays
from pliant.export import OnnxModel, to_onnx
from pliant.export.structure import flatten
from pliant.export.to_onnx import evaluated
from pliant.export.weights import strip
from pliant.search.objectives import Context

_RANDOM_ROWS, _EXAMPLE_ROWS = 2, 3


@dataclass(frozen=True)
class Answers:
    """Inputs of the network's form, and the output tensors torch gives for them, depth first."""

    inputs: Any
    outputs: list[Tensor]


@dataclass(frozen=True)
class Draft:
    """One sub-network.

    Args:
        config: which one.
        values: figures known so far.
        model: its ONNX form.
        graph: name of its graph file.
        sources: where its tensors come from in the full network.
        packed: its number in the packer.
        random: answers to random rows, which may travel with the artifact (real ones may be somebody's secret).
        real: answers to rows of the example.
    """

    config: Mapping[str, int | bool]
    values: dict[str, float]
    model: OnnxModel
    graph: str
    sources: Mapping[str, Source]
    packed: int
    random: Answers
    real: Answers


def calibration(net: Any, data: Dataset | None, seed: int) -> list[Any] | None:
    """The training batches a search with this seed calibrates on, so that its figures and the artifact's agree.

    None without data, and for a plain module, whose statistics are its own.
    """
    if data is None or not isinstance(net, Sliceable):
        return None
    return Context(cast(Any, net), train=data.train, seed=seed).calibration


def draft(
    net: nn.Module, config: Config, *, example: Any, batches: list[Any] | None, packer: Packer, folder: Path, seed: int
) -> Draft:
    """Extract and export one sub-network, write its graph into `folder` and its weights into `packer`.

    Raises:
        PliantError: it cannot be exported.
    """
    module, sources = extracted(net, config, batches)
    model = to_onnx(module, example, seed=seed)
    graph, weights = strip(model.proto, model.state_names)
    name = f"graph-{hashlib.sha256(graph).hexdigest()[:16]}.onnx"
    (folder / name).write_bytes(graph)
    with evaluated(module) as local, torch.no_grad():
        random = _ask(local, model.form.random(_RANDOM_ROWS, seeded(seed, "compile", "rows")))
        real = _ask(local, model.form.rows(_EXAMPLE_ROWS))
    values = {"parameters": float(sum(tensor.numel() for tensor in module.parameters()))}
    cost = getattr(net, "cost", None)
    if callable(cost):
        values["flops"] = float(cost(config).flops)
    return Draft(config, values, model, name, sources, packer.add(weights, sources), random, real)


def calls(one: Draft, rows: int) -> Any:
    """Inputs of so many rows, as the runtime takes them; rows of the example."""
    return arrays(one.model.form.rows(rows))


def _ask(net: nn.Module, inputs: Any) -> Answers:
    return Answers(inputs, flatten(call(net, inputs))[0])


def same_signature(drafts: list[Draft]) -> None:
    """All sub-networks return the same tensors in the same structure.

    Raises:
        PliantError: two do not.
    """
    first = drafts[0].model
    for other in drafts[1:]:
        if (other.model.outputs, dict(other.model.structure)) != (first.outputs, dict(first.structure)):
            problem = f"sub-networks return {first.outputs} and {other.model.outputs}"
            raise PliantError(problem, where=str(other.config), fix="compile them into separate artifacts")
