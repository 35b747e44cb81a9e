"""A slow and plain way of running a traced network, against which the fast ones are held."""

from typing import Any

import torch

from pliant.core import as_call, make_output
from pliant.graph import Graph
from pliant.graph.ir import TRAINING, Named, Ref, callable_of, evaluated


def interpret(graph: Graph, example: Any, *, zeroed: str = "", copied: tuple[str, str] = ("", "")) -> Any:
    """The output of the whole network in evaluation mode, node by node.

    Args:
        graph: a traced network.
        example: inputs, as `trace` takes them.
        zeroed: name of a node whose value becomes zeros, so that whatever adds it goes on without it.
        copied: without `zeroed` the name of a node, and that of the node whose value it gets.
    """
    program = evaluated(graph.program)
    inputs = iter(program.form.tensors(*as_call(example)))
    values: dict[str, Any] = {TRAINING: False}
    for node in program:
        if node.kind == "input":
            value = next(inputs)
        elif node.kind == "state":
            value = graph.states[node.target]
        else:
            value = callable_of(program, node)(*_filled(node.args, values), **_filled(node.kwargs, values))
        if not zeroed and node.name == copied[0]:
            value = values[copied[1]]
        values[node.name] = torch.zeros_like(value) if node.name == zeroed else value
    return _filled(graph.program.output, values)


def _filled(value: Any, values: dict[str, Any]) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, Named):
        return make_output(value.keys, *[_filled(item, values) for item in value])
    if isinstance(value, tuple | list):
        return type(value)(_filled(item, values) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value
