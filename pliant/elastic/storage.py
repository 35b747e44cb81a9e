"""Storage: networks as safetensors and JSON, to be run without the user's code."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pliant.core import PliantError, Space, atomic_folder, read_json, write_atomic, write_json
from pliant.core.forms import from_dict as form_from_dict
from pliant.core.forms import parts_of
from pliant.core.forms import to_dict as form_to_dict
from pliant.elastic.extract import parameter_of
from pliant.flow.joint import Joint
from pliant.flow.stored import stage_data, stage_of
from pliant.graph.graph import Graph, aliases
from pliant.graph.ir import Node, Program, decode, encode, verify

if TYPE_CHECKING:
    from pliant.elastic.elastic import Elastic

FORMAT = 1
KINDS = {"elastic": ("an elastic network", "Elastic.load"), "one pass": ("a one-pass network", "OnePass.load")}
"""Kind to what a folder of it holds, and what loads it."""
_DAMAGES = (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, PliantError)


def save_elastic(net: "Elastic", path: str | Path) -> None:
    """Write `graph.json` and `tensors.safetensors` into a folder, which appears whole or not at all."""
    data, tensors = graph_data(net.graph)
    tensors |= {f"state.{n}": t for n, t in net._current().items() if n not in data["tied"]}
    tensors |= {f"state.{n}": parameter_of(net, n) for n in net._transforms.names}
    data |= {
        "name": net.name, "space": net.space.to_dict(), "dropped": list(net.dropped),
        "others": list(net._others), "own": list(net._own), "active": dict(net.active), "training": net.training,
        "untrained": sorted(n for n in (*net.graph.parameters, *net._transforms.names) if not _trains(net, n)),
    }  # fmt: skip
    write_network(path, "elastic", data=data, tensors=tensors)


def load_elastic(path: str | Path) -> "Elastic":
    """The inverse of `save_elastic`.

    Raises:
        PliantError: a file is missing, damaged, or of another format or kind.
    """
    from pliant.elastic.branching import Branching
    from pliant.elastic.elastic import Elastic

    data, tensors = read_network(path, "elastic")
    with damages(path):
        graph = graph_of(data, tensors)
        names = {"others": data["others"], "own": data["own"]}
        family = Branching if isinstance(graph, Joint) else Elastic
        net = family(graph, Space.from_dict(data["space"]), str(data["name"]), data["dropped"], **names)
        for name in net._transforms.names:
            matrix = parameter_of(net, name).requires_grad_(name not in data["untrained"])
            matrix.data.copy_(tensors[f"state.{name}"])
        net.activate(data["active"])
        net.train(bool(data["training"]))
    return net


# -- folders ---------------------------------------------------------------------------------------------------------


def write_network(path: str | Path, kind: str, *, data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a folder of one of the `KINDS`, whole or not at all."""
    held = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    with atomic_folder(path, replace=True) as folder:
        write_atomic(folder / "tensors.safetensors", save(held))
        write_json(folder / "graph.json", {"format": FORMAT, "kind": kind, **data})


def read_network(path: str | Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write_network` wrote.

    Raises:
        PliantError: a file is missing or damaged, or the folder is of another format or kind.
    """
    folder = Path(path)
    data = read_json(folder / "graph.json")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PliantError(f"not {KINDS[kind][0]} of this version", where=str(folder / "graph.json"))
    if (found := str(data.get("kind", "elastic"))) != kind:
        what, loader = KINDS.get(found, (f"a network of the kind {found!r}", "a newer pliant"))
        raise PliantError(f"holds {what}, not {KINDS[kind][0]}", where=str(folder), fix=f"load it with {loader}")
    try:
        # The file is mapped to memory, where tensors lie unaligned and change with it: copies are not and do not.
        return data, {name: tensor.clone() for name, tensor in load_file(folder / "tensors.safetensors").items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise PliantError(
            f"not readable as safetensors ({error})", where=str(folder / "tensors.safetensors")
        ) from error


@contextmanager
def damages(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong while a network is made of what was read is a `PliantError` that names the folder."""
    try:
        yield
    except _DAMAGES as error:
        problem = f"damaged ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        raise PliantError(problem, where=str(Path(path)), fix="save the network again") from error


# -- graphs ----------------------------------------------------------------------------------------------------------


def graph_data(graph: Graph) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A graph without its states: JSON data, and the tensors of its example.

    Raises:
        PliantError: a part of it runs as it is, so that it needs the user's code.
    """
    for path, opaque in graph.program.opaque.items():
        raise PliantError(
            f"{path} runs as it is ({opaque.reason}), so that the network needs its code to run",
            where=opaque.line or None,
            fix="extract a sub-network and store its state_dict(), or rewrite what cannot be traced",
        )
    shell, leaves = _shell(graph.example)
    data = {
        "parameters": sorted(graph.parameters), "tied": aliases(graph), "example": shell, "notes": graph.notes,
        "asked": list(graph.asked), "frozen": sorted(graph.frozen), "output": encode(graph.program.output),
        "form": form_to_dict(graph.program.form),
        "nodes": [
            [n.name, n.kind, n.target, encode(n.args), encode(n.kwargs), n.module, n.line, n.in_place, n.live]
            for n in graph.program
        ],
    }  # fmt: skip
    if isinstance(graph, Joint):
        data["stages"] = [stage_data(stage) for stage in graph.stages]
    return data, {f"example.{i}": leaf for i, leaf in enumerate(leaves)}


def _trains(net: "Elastic", name: str) -> bool:
    return parameter_of(net, name).requires_grad


def graph_of(data: dict[str, Any], tensors: dict[str, Tensor]) -> Graph:
    """The graph of `graph_data`, with the states `state.NAME` among the tensors; `data["untrained"]` names those
    parameters that do not train."""
    program = Program(
        [
            Node(n, k, t, decode(a), decode(kw), m, line, bool(place), bool(live and live[0]))
            for n, k, t, a, kw, m, line, place, *live in data["nodes"]
        ],
        decode(data["output"]),
        form=form_from_dict(data["form"]) if "form" in data else None,  # type: ignore[arg-type]
    )
    verify(program)
    parameters, untrained = set(data["parameters"]), set(data["untrained"])
    states: dict[str, Tensor] = {}
    for node in program.states:
        first = data["tied"].get(node.target, node.target)
        if first not in states:
            tensor = tensors[f"state.{first}"]
            states[first] = nn.Parameter(tensor, first not in untrained) if first in parameters else tensor
        states[node.target] = states[first]
    kept = {"frozen": set(data["frozen"]), "asked": data["asked"]}
    if "stages" in data:
        example = _fill(data["example"], tensors)
        stages = [stage_of(each) for each in data["stages"]]
        return Joint.stored(program, states, parameters, example, stages, asked=data["asked"])
    return Graph(program, states, parameters, _fill(data["example"], tensors), list(data["notes"]), **kept)


def _shell(example: Any) -> tuple[Any, list[Tensor]]:
    """The example's structure as JSON data, and its tensors."""
    leaves: list[Tensor] = []

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            leaves.append(value)
            return {"tensor": len(leaves) - 1}
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return {"tuple": [walk(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": {key: walk(item) for key, item in value.items()}}
        if hasattr(value, "_fields") or dataclasses.is_dataclass(value):  # a dict of its fields does as well
            return {"dict": {str(key): walk(item) for key, item in parts_of(value) or ()}}
        return {"value": value}

    return walk(example), leaves


def _fill(shell: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = shell.items()
    if kind == "tensor":
        return tensors[f"example.{content}"]
    if kind == "tuple":
        return tuple(_fill(item, tensors) for item in content)
    if kind == "dict":
        return {key: _fill(item, tensors) for key, item in content.items()}
    return content
