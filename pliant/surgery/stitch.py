"""Stitching: cut a network in two, chain two networks."""

import dataclasses
from collections.abc import Mapping

from torch import nn

from pliant.core import PliantError
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Node, Ref, argument, refs, writes_state
from pliant.surgery.program import (
    as_graph,
    follow,
    inlined,
    place_of,
    prefixed,
    redirected,
    remake,
    unique,
    values,
)
from pliant.surgery.spans import free_prefix


def cut(graph: Graph, at: str) -> tuple[Graph, Graph]:
    """Two graphs: from the inputs to a place, and from there to the outputs. They share the tensors.

    Args:
        graph: a traced network; it is not changed.
        at: a span, a module path or a node.

    Raises:
        ValueError: no such place.
        PliantError: the second part needs more of the first than the value at this place.
    """
    place = place_of(graph, at)
    nodes = {node.name: node for node in graph.program}
    entry = Node(unique("x", set(nodes)), "input", "x")
    behind: dict[str, Node] = {}
    shapes = graph.analysis.shapes
    stack = [ref.name for ref in refs(graph.program.output)]
    while stack:
        name = stack.pop()
        if name in behind or name in (place, TRAINING):
            continue
        node = nodes[name]
        if node.kind == "input":
            raise PliantError(f"what comes after it also reads the input {node.target!r} by another way", where=at,
                              fix="cut where one value carries everything")  # fmt: skip
        sized = node.packet == "aten.sym_size"
        if sized and argument(node, "dim") == 0 and shapes[node.args[0].name, 0][0] == shapes[place, 0][0]:
            node = dataclasses.replace(node, args=(Ref(place), 0), kwargs={})
        behind[name] = node
        stack += [ref.name for ref in refs((node.args, node.kwargs))]
    env = {place: Ref(entry.name)}
    head = _ancestors(nodes, place)
    tail = [redirected(behind.get(node.name, node), env) for node in _with_writes(graph, set(behind), {place})]
    value = values(graph, [place])[place]
    return (
        remake(graph, [n for n in graph.program if n.kind == "input"] + _with_writes(graph, head, set()), Ref(place)),
        remake(graph, [entry, *tail], follow(graph.program.output, env), example=value),
    )


def _ancestors(nodes: Mapping[str, Node], place: str) -> set[str]:
    """A node, and all that it needs."""
    found = {place}
    for node in reversed([*nodes.values()]):
        if node.name in found:
            found.update(ref.name for ref in refs((node.args, node.kwargs)))
    return found


def _with_writes(graph: Graph, names: set[str], ends: set[str]) -> list[Node]:
    """Nodes, and those writes to state (counters) that belong to their modules and need nothing else."""
    modules = {node.module for node in graph.program if node.name in names and node.kind == "call"}
    states = {node.name for node in graph.program.states}
    for node in graph.program:
        reads = {ref.name for ref in refs((node.args, node.kwargs))} - {TRAINING}
        if writes_state(node) and node.module in modules and reads <= names | states | ends:
            names = names | (reads - ends) | {node.name}
    return [node for node in graph.program if node.name in names and node.kind != "input"]


def chain(first: Graph, second: Graph, *, through: Graph | nn.Module | None = None, prefix: str = "") -> Graph:
    """One graph that runs two in turn: the first's output is the second's input.

    Args:
        first, second: traced graphs; neither is changed.
        through: what stands between them (a stitching layer): a graph, or a module that is traced on the first's
            output. Its states' names get the prefix `through`.
        prefix: of the second's states' names.

    Raises:
        ValueError: both hold states of the same name that are not the same tensor.
        PliantError: the second does not take what the first gives.
    """
    if through is not None:
        if not isinstance(first.program.output, Ref):
            raise PliantError("something can stand between them only where the first returns one tensor")
        name = first.program.output.name
        middle = as_graph(through, values(first, [name])[name])
        first = chain(first, middle, prefix=free_prefix(first, "through"))
    rename = {old: prefixed(prefix, old) for old in second.states}
    clash = [n for old, n in rename.items() if n in first.states and first.states[n] is not second.states[old]]
    if clash:
        raise ValueError(f"both graphs hold a state {clash[0]!r}; give the second's names a prefix")
    feeds = list(refs(first.program.output))
    shapes = [first.analysis.shapes.get((ref.name, 0), ())[1:] for ref in feeds]
    wanted = [second.analysis.shapes.get((node.name, 0), ())[1:] for node in second.program.inputs]
    if shapes != wanted:
        raise PliantError(f"the first gives out {[list(s) for s in shapes]} (without the batch), "
                          f"the second takes {[list(s) for s in wanted]}")  # fmt: skip
    taken = {node.name for node in first.program}
    added, output = inlined(second, feeds, taken, prefix)
    states = {rename[old]: tensor for old, tensor in second.states.items()}
    return remake(first, [*first.program, *added], output, states=states, also=[(second, prefix)])
