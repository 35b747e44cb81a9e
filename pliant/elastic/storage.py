"""Storage: an elastic network as safetensors and JSON, to be run without the user's code."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pliant.core import PliantError, Space, atomic_folder, read_json, write_atomic, write_json
from pliant.core.forms import from_dict as form_from_dict
from pliant.core.forms import parts_of
from pliant.core.forms import to_dict as form_to_dict
from pliant.elastic.extract import parameter_of
from pliant.graph.graph import Graph, aliases
from pliant.graph.ir import Node, Program, decode, encode, verify

if TYPE_CHECKING:
    from pliant.elastic.elastic import Elastic

FORMAT = 1


def save_elastic(net: "Elastic", path: str | Path) -> None:
    """Write `graph.json` and `tensors.safetensors` into a folder, which appears whole or not at all."""
    graph = net.graph
    for path, opaque in graph.program.opaque.items():
        raise PliantError(
            f"{path} runs as it is ({opaque.reason}), so that the network needs its code to run",
            where=opaque.line or None,
            fix="extract a sub-network and store its state_dict(), or rewrite what cannot be traced",
        )
    tied = aliases(graph)
    tensors = {f"state.{n}": t.detach().cpu().contiguous() for n, t in net._current().items() if n not in tied}
    tensors |= {f"state.{n}": parameter_of(net, n).detach().cpu() for n in net._transforms.names}
    shell, leaves = _shell(graph.example)
    tensors |= {f"example.{i}": leaf.cpu().contiguous() for i, leaf in enumerate(leaves)}
    data = {
        "format": FORMAT, "name": net.name, "space": net.space.to_dict(), "dropped": list(net.dropped),
        "others": list(net._others), "own": list(net._own),
        "parameters": sorted(graph.parameters), "tied": tied, "example": shell, "notes": graph.notes,
        "asked": list(graph.asked), "frozen": sorted(graph.frozen),
        "active": dict(net.active), "training": net.training, "output": encode(graph.program.output),
        "form": form_to_dict(graph.program.form),
        "untrained": sorted(n for n in (*graph.parameters, *net._transforms.names) if not _trains(net, n)),
        "nodes": [
            [n.name, n.kind, n.target, encode(n.args), encode(n.kwargs), n.module, n.line, n.in_place, n.live]
            for n in graph.program
        ],
    }  # fmt: skip
    with atomic_folder(path, replace=True) as folder:
        write_atomic(folder / "tensors.safetensors", save({name: tensor.clone() for name, tensor in tensors.items()}))
        write_json(folder / "graph.json", data)


def load_elastic(path: str | Path) -> "Elastic":
    """The inverse of `save_elastic`.

    Raises:
        PliantError: a file is missing, damaged, or of another format.
    """
    from pliant.elastic.elastic import Elastic

    folder = Path(path)
    data = read_json(folder / "graph.json")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PliantError("not an elastic network of this version", where=str(folder / "graph.json"))
    try:
        # The file is mapped to memory, where tensors lie unaligned and change with it: copies are not and do not.
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "tensors.safetensors").items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise PliantError(
            f"not readable as safetensors ({error})", where=str(folder / "tensors.safetensors")
        ) from error
    try:
        graph = _graph(data, tensors)
        names = {"others": data["others"], "own": data["own"]}
        net = Elastic(graph, Space.from_dict(data["space"]), str(data["name"]), data["dropped"], **names)
        for name in net._transforms.names:
            matrix = parameter_of(net, name).requires_grad_(name not in data["untrained"])
            matrix.data.copy_(tensors[f"state.{name}"])
        net.activate(data["active"])
        net.train(bool(data["training"]))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, PliantError) as error:
        problem = f"damaged ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        raise PliantError(problem, where=str(folder), fix="save the network again") from error
    return net


def _trains(net: "Elastic", name: str) -> bool:
    return parameter_of(net, name).requires_grad


def _graph(data: dict[str, Any], tensors: dict[str, Tensor]) -> Graph:
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
