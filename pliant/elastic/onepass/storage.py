"""Storage of one-pass networks: safetensors and JSON, to be run without the user's code."""

from pathlib import Path
from typing import TYPE_CHECKING

from pliant.elastic.onepass.plan import Plan
from pliant.elastic.onepass.shells import Shells
from pliant.elastic.storage import damages, graph_data, graph_of, read_network, write_network

if TYPE_CHECKING:
    from pliant.elastic.onepass.network import OnePass

KIND = "one pass"


def save_one_pass(net: "OnePass", path: str | Path) -> None:
    """Write `graph.json` and `tensors.safetensors` into a folder, which appears whole or not at all."""
    stacked: list[str] = []  # heads with a row for every width; the graph's own have none
    data, tensors = graph_data(net.graph)
    for name, graphs in net.graph.states.items():
        own, first = net.state(name), data["tied"].get(name, name)
        if name == first or own is not net.state(first):
            tensors[f"state.{name}"] = own
            if own.dim() > graphs.dim():
                stacked.append(name)
    data |= {
        "name": net.name, "training": net.training, "widths": net.widths, "leak": net.leak, "own_heads": net.own_heads,
        "groups": list(net.units), "stacked": stacked,
        "untrained": sorted(n for n in data["parameters"] if not net.state(n).requires_grad),
    }  # fmt: skip
    write_network(path, KIND, data=data, tensors=tensors)


def load_one_pass(path: str | Path) -> "OnePass":
    """The inverse of `save_one_pass`.

    Raises:
        PliantError: a file is missing, damaged, or of another format or kind.
    """
    from pliant.elastic.onepass.network import OnePass

    data, tensors = read_network(path, KIND)
    with damages(path):
        rows = {f"state.{name}": tensors[f"state.{name}"][0] for name in data["stacked"]}
        graph = graph_of(data, tensors | rows)
        named = {group.name: g for g, group in enumerate(graph.groups)}
        plan = Plan(graph, Shells(graph, [named[name] for name in data["groups"]], data["widths"]))
        net = OnePass(graph, plan, str(data["name"]), leak=float(data["leak"]), own_heads=bool(data["own_heads"]))
        for name in graph.states:
            kept = tensors[f"state.{name}" if f"state.{name}" in tensors else f"state.{data['tied'][name]}"]
            if kept.shape != net.state(name).shape:  # copy_ would stretch it
                raise ValueError(f"{name} is {list(kept.shape)}, the network has {list(net.state(name).shape)}")
            net.state(name).data.copy_(kept)
        net.train(bool(data["training"]))
    return net
