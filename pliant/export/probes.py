"""Probes of a family: operators and whole sub-networks whose times tell how fast a machine runs the others."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from pliant.core import Config, Space, at_least
from pliant.export.network_text import Operator, network_text, operators, simplified, values_of
from pliant.export.to_onnx import to_onnx
from pliant_runtime.probes import Probe, write_probes

_SPREAD = 0.25  # of a knob's choices around the share that a sub-network aims at


class Family(Protocol):
    """What a network must offer to be probed; `pliant.elastic(...)` does."""

    @property
    def space(self) -> Space:
        """What can be chosen."""
        ...

    @property
    def example(self) -> Any:
        """An example input."""
        ...

    def extract(self, config: Config) -> nn.Module:
        """One sub-network as a module."""
        ...


@dataclass(frozen=True)
class ProbeSettings:
    """How many probes are made of a family.

    Args:
        operators: most single operators.
        networks: whole sub-networks to learn from, the smallest and the largest among them.
        checks: whole sub-networks that are measured last, to state the error.
        seed: of the choice.

    Raises:
        ValueError: fewer than 4 networks or 2 checks, or a negative number.
    """

    operators: int = 120
    networks: int = 60
    checks: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, operators=0, networks=4, checks=2, seed=0)


USUAL = ProbeSettings()


def probe_family(net: Family, folder: str | Path, *, settings: ProbeSettings = USUAL) -> Path:
    """Write probes of a family into a folder, to be measured on any machine by `pliant-runtime measure`.

    Args:
        net: an elastic network; not changed.
        folder: for the `.onnx` files and `probes.json`.
        settings: how many.

    Raises:
        PliantError: a sub-network cannot be exported.
        ValueError: a space with fewer sub-networks than are wanted.
    """
    return write_probes(probes_of(net, settings), folder)


def probes_of(net: Family, settings: ProbeSettings) -> list[Probe]:
    """The probes of a family; see `probe_family`."""
    wanted = settings.networks + settings.checks
    configs = spread_configs(net.space, wanted, settings.seed)
    if len(configs) < wanted:
        raise ValueError(
            f"the space has {net.space.size} sub-networks, {len(configs)} of {wanted} wanted were found; ask for fewer"
        )
    # the ends of the range are learned from, the rest is shuffled between the roles
    order = [0, 1, *(np.random.default_rng(settings.seed).permutation(wanted - 2) + 2).tolist()]
    wholes, singles = [], dict[str, Probe]()
    for number, index in enumerate(order):
        proto = simplified(to_onnx(net.extract(configs[index]), net.example, check=False).proto)
        role = "whole" if number < settings.networks else "check"
        wholes.append(Probe(f"{role} {number}", role, proto.SerializeToString(), network_text(proto)))
        if role == "whole":
            _add_operators(singles, proto)
    return [*_chosen(list(singles.values()), settings.operators), *wholes]


def spread_configs(space: Space, count: int, seed: int) -> list[Config]:
    """The smallest, the largest and random sub-networks that spread over all sizes; distinct, fewer if there are not.

    Each aims at a share of everything and keeps about that much of every knob.
    """
    rng, count = np.random.default_rng(seed), min(count, space.size)
    found = dict.fromkeys([space.smallest(), space.largest()])
    for _ in range(50 * count):
        if len(found) >= count:
            break
        share = rng.random()
        values: dict[str, Any] = {}
        for knob in space:
            aim = (len(knob.choices) - 1) * (share + _SPREAD * rng.standard_normal())
            values[knob.name] = knob.choices[int(np.clip(round(aim), 0, len(knob.choices) - 1))]
        found[_there(space, values)] = None
    return list(found)[:count]


def _there(space: Space, values: dict[str, Any]) -> Config:
    """The config of the wanted values, without knobs that are not there with them."""
    kept: dict[str, Any] = {}
    for knob in space:
        if all(kept.get(name) in allowed and name in kept for name, allowed in knob.conditions):
            kept[knob.name] = values[knob.name]
    return space.validate(kept)


def _add_operators(found: dict[str, Probe], proto: Any) -> None:
    """Every operator of a graph that is not known yet, as a graph of its own."""
    listed = [operator for operator in operators(proto) if operator.text not in found]
    if not listed:
        return
    values = values_of(proto)
    for operator in listed:
        graph = _alone(operator, proto, values)
        if graph is not None and operator.text not in found:
            name = f"operator {hashlib.sha256(operator.text.encode()).hexdigest()[:12]}"
            found[operator.text] = Probe(name, "operator", graph, f"{operator.text}\n")


def _alone(operator: Operator, proto: Any, values: dict[str, Any]) -> bytes | None:
    """The operator as a graph: what it takes from others comes from outside; None where that is not computed."""
    from onnx import helper, numpy_helper

    node = operator.node
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    given = {value.name: value for value in proto.graph.input if value.name not in held}
    weights, inputs = [], []
    for name in dict.fromkeys(name for name in node.input if name):
        if name in held:
            weights.append(held[name])
        elif name in given:
            inputs.append(given[name])
        elif name not in values:
            return None
        elif values[name].dtype.kind == "f":
            kind = helper.np_dtype_to_tensor_dtype(values[name].dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, list(values[name].shape)))
        else:  # shapes and the like: the operator would not run with others
            weights.append(numpy_helper.from_array(values[name], name))
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], "probe", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
    return bytes(model.SerializeToString())


def _chosen(probes: list[Probe], most: int) -> list[Probe]:
    """As many as wanted, evenly from all kinds and sizes."""
    if len(probes) <= most:
        return probes
    ordered = sorted(probes, key=lambda probe: (probe.text.split()[0], len(probe.graph), probe.text))
    return [ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, most)] if most else []
