"""Rebuilding: a traced graph, as surgery leaves it, as a plain module."""

from torch import Tensor, nn

from pliant.elastic.extract import extract_module
from pliant.elastic.walk import Walked
from pliant.flow.joint import Joint
from pliant.graph.graph import Graph


def to_module(graph: Graph, *, name: str = "Network") -> nn.Module:
    """A plain module that runs a graph: original parameter names, live `train()` and `eval()`, no user code.

    Its tensors are copies, so that training it changes neither the graph nor the network the graph was traced from.
    `elastic(to_module(graph), graph.example)` makes it bend again.

    Args:
        graph: a traced network.
        name: of the module's class.
    """
    copies: dict[int, Tensor] = {}
    states: dict[str, Tensor] = {}
    for state, tensor in graph.states.items():
        if id(tensor) not in copies:
            own = tensor.detach().clone()
            copies[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if state in graph.parameters else own
        states[state] = copies[id(tensor)]
    counts = graph.counts({})
    sizes = [patch.value(counts) for patch in graph.patches]
    if isinstance(graph, Joint):  # the program of a joint graph is all branches at once
        return Walked(graph, states, sizes, name)
    return extract_module(graph, states, sizes, [True] * len(graph.spans), name)
