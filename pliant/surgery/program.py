"""What all of surgery is made of: running a program, renumbering it, and putting one program into another."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.graph.graph import Graph, trace
from pliant.graph.ir import TRAINING, Node, Program, Ref, callable_of, evaluated, refs, substitute, substitute_node
from pliant.graph.labels import IntArray
from pliant.graph.patches import Patch
from pliant.graph.rules import find_rule, shape, spread

EXACT = 1e-9
"""Largest relative difference in double precision between outputs that are the same function's."""

_SAME = ("aten.contiguous", "aten.clone", "aten.detach", "aten.alias", "aten.to", "aten._to_copy", "aten.type_as",
         "aten.lift_fresh", "aten.lift_fresh_copy", "operator.getitem")  # fmt: skip


def carries(node: Node) -> bool:
    """Whether a call only hands on the entries of its first operand, moved or repeated."""
    return node.target == "operator.getitem" or node.packet in _SAME or find_rule(node) in (shape, spread)


def remake(graph: Graph, nodes: list[Node], output: Any, *, states: Mapping[str, Tensor] | None = None,
           example: Any = None, also: Sequence[tuple[Graph, str]] = ()) -> Graph:  # fmt: skip
    """A graph with other nodes, analysed anew.

    Args:
        graph: where states, notes and what was asked for come from.
        nodes, output: the program; calls that nobody needs go, writes to state stay.
        states: tensors in place of the graph's and beside them.
        example: in place of the graph's.
        also: graphs that were put in, with their prefixes.
    """
    alive = [substitute_node(node) for node in _once(replace(graph.program, nodes=nodes, output=output)).without_dead()]
    output = substitute(output, lambda ref: ref)
    known = {**graph.states, **(states or {})}
    used = {node.target: known[node.target] for node in alive if node.kind == "state"}
    graphs = (graph, *(part for part, _ in also))
    parameters = {name for name, tensor in used.items() if isinstance(tensor, nn.Parameter)}
    notes = list(dict.fromkeys(note for each in graphs for note in each.notes))
    asked = tuple(dict.fromkeys(pattern for each in graphs for pattern in each.asked))
    frozen = set().union(*(each.frozen for each in graphs)) & set(used)
    opaque = {prefixed(prefix, path): held for part, prefix in [(graph, ""), *also]
              for path, held in part.program.opaque.items()}  # fmt: skip
    program = replace(graph.program, nodes=alive, output=output, opaque=opaque)
    example = graph.example if example is None else example
    return Graph(program, used, parameters, example, notes, frozen=frozen, asked=asked)


def _once(program: Program) -> Program:
    """The same program with one node for each state."""
    first: dict[str, str] = {}
    env: dict[str, Ref] = {}
    nodes = []
    for node in program:
        if node.kind == "state" and first.setdefault(node.target, node.name) != node.name:
            env[node.name] = Ref(first[node.target])
        else:
            nodes.append(redirected(node, env))
    return replace(program, nodes=nodes)


def redirected(node: Node, env: Mapping[str, Ref]) -> Node:
    """A copy of a node that reads other values in the places of some."""
    args, kwargs = follow((node.args, node.kwargs), env)
    return replace(node, args=args, kwargs=kwargs)


def follow(value: Any, env: Mapping[str, Ref]) -> Any:
    """Operands with other references in the places of some."""
    return substitute(value, lambda ref: env.get(ref.name, ref))


# -- running ---------------------------------------------------------------------------------------------------------


def values(graph: Graph, wanted: Collection[str], *, inputs: Sequence[Any] | None = None,
           states: Mapping[str, Tensor] | None = None, double: bool = False,
           seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """What chosen nodes give in evaluation mode.

    Args:
        graph: what to run.
        wanted: names of nodes.
        inputs: one for each input; the example's by default.
        states: in place of the graph's own.
        double: whether everything runs in double precision.
        seed: of networks that draw random numbers even then.
    """
    waiting = list(graph.inputs if inputs is None else inputs)
    program = evaluated(graph.program, torch.float64 if double else None)
    env: dict[str, Any] = {TRAINING: False}
    last = {ref.name: node.name for node in graph.program for ref in refs((node.args, node.kwargs))}
    held = {TRAINING, *wanted}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for node in program:
            if node.kind == "input":
                env[node.name] = _wide(waiting.pop(0), double)
            elif node.kind == "state":
                own = (states or graph.states)[node.target].detach()
                wide = _wide(own, double)
                env[node.name] = wide.clone() if wide is own and node.target not in graph.parameters else wide
            else:
                env[node.name] = run_node(program, node, env, double=double)
            for ref in refs((node.args, node.kwargs)):
                if last[ref.name] == node.name and ref.name not in held:
                    env[ref.name] = None  # nobody reads it any more
    return {name: env[name] for name in wanted}


def run_node(program: Program, node: Node, env: Mapping[str, Any], *, double: bool = False) -> Any:
    """The value of a call in evaluation mode, given those of its operands."""
    if node.live:
        return None
    args, kwargs = substitute((node.args, node.kwargs), lambda ref: env[ref.name])
    if double:
        args, kwargs = _widened(args), _widened(kwargs)
    return callable_of(program, node)(*args, **kwargs)


def _wide(value: Any, double: bool) -> Any:
    return value.double() if double and isinstance(value, Tensor) and value.is_floating_point() else value


def _widened(value: Any) -> Any:
    """Operands in which nothing asks for single precision."""
    if isinstance(value, tuple | list):
        return type(value)(_widened(item) for item in value)
    if isinstance(value, dict):
        return {key: _widened(item) for key, item in value.items()}
    return torch.float64 if value is torch.float32 else value


def outputs(graph: Graph, states: Mapping[str, Tensor] | None = None, seed: int = 0) -> list[Tensor]:
    """What a graph returns for its example, in double precision where its operators allow that."""
    names = [ref.name for ref in refs(graph.program.output)]
    try:
        found = values(graph, set(names), states=states, double=True, seed=seed)
    except RuntimeError:  # an operator that makes single precision by itself
        found = values(graph, set(names), states=states, seed=seed)
    return [found[name] for name in names if isinstance(found[name], Tensor)]


def difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Largest difference between two results, relative to the largest entry, in units of what rounding may make."""
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() and not torch.equal(a, b):
            allowed = EXACT if a.dtype == torch.float64 else 1e-4
            scale = max(1e-6, float(b.double().abs().max())) * allowed
            gap = float((a.double() - b.double()).abs().max()) / scale
            worst = max(worst, gap if gap == gap else float("inf"))
    return worst


def demand_same(graph: Graph, got: Sequence[Tensor], where: str, problem: str) -> None:
    """Outputs are those of the graph; not asked of a network that draws random numbers in evaluation.

    Raises:
        PliantError: they are not: "the network `problem`".
    """
    wanted = outputs(graph)
    if difference(got, wanted) > 1 and difference(outputs(graph, seed=1), wanted) <= 1:
        raise PliantError(f"the network {problem}", where=where)


# -- numbers ---------------------------------------------------------------------------------------------------------


def renumbered(graph: Graph, counts: IntArray) -> list[Node]:
    """Copies of all nodes with the sizes that the groups' counts ask for, which may be above the graph's own."""
    patches: dict[str, list[Patch]] = {}
    for patch in graph.patches:
        patches.setdefault(patch.node, []).append(patch)
    nodes: list[Node] = []
    names = {node.name for node in graph.program}
    for old in graph.program:
        node = substitute_node(old)
        for patch in patches.get(node.name, ()):
            slope, base = patch.affine(len(counts))
            number: Any = (int(slope @ counts + base) * patch.scale[0] + patch.offset) // patch.scale[1]
            if patch.ratio and number == len(patch.axis.group):
                continue  # it depends on the batch, and on nothing that has changed
            if patch.ratio:
                given = (node.kwargs if isinstance(patch.key, str) else node.args)[patch.key][patch.item]  # type: ignore[index]
                for operator, operand in (("mul", number), ("floordiv", len(patch.axis.group))):
                    nodes.append(Node(unique(f"{node.name}_size", names), "call", f"operator.{operator}",
                                      (given, operand), module=node.module, line=node.line))  # fmt: skip
                    given = Ref(nodes[-1].name)
                number = given
            _set_number(node, patch, number)
        if node.target == "aten.view.default" and node.args != old.args:
            node.target = "aten.reshape.default"  # what is as small as one unit may lie in memory otherwise
        nodes.append(node)
    return nodes


def _set_number(node: Node, patch: Patch, number: Any) -> None:
    holder: dict[Any, Any] = dict(node.kwargs if isinstance(patch.key, str) else enumerate(node.args))
    if patch.item is None:
        holder[patch.key] = number
    else:
        holder[patch.key] = [number if i == patch.item else item for i, item in enumerate(holder[patch.key])]
    if isinstance(patch.key, str):
        node.kwargs = holder
    else:
        node.args = tuple(holder[i] for i in range(len(holder)))


# -- putting together ------------------------------------------------------------------------------------------------


def unique(wanted: str, taken: set[str]) -> str:
    """A name that is not taken yet; it is from then on."""
    name, count = wanted, 1
    while name in taken:
        name, count = f"{wanted}_{count}", count + 1
    taken.add(name)
    return name


def copied(nodes: Iterable[Node], taken: set[str], env: Mapping[str, Ref],
           rename: Mapping[str, str]) -> tuple[list[Node], dict[str, Ref]]:  # fmt: skip
    """Copies of nodes under new names.

    Args:
        nodes: in order.
        taken: names of nodes that exist; the new ones are added.
        env: what stands for nodes that are not copied; others keep their references.
        rename: targets (states, mostly) to new ones.

    Returns:
        The copies, and for every old name the reference to what stands for it.
    """
    known = dict(env)
    made = []
    for node in nodes:
        new = redirected(node, known)
        new.name = unique(node.name, taken)
        new.target = rename.get(node.target, node.target)
        known[node.name] = Ref(new.name)
        made.append(new)
    return made, known


def inlined(other: Graph, feeds: Sequence[Ref], taken: set[str], prefix: str) -> tuple[list[Node], Any]:
    """A graph's nodes for use in another one, with its inputs replaced and its states renamed.

    Returns:
        The nodes, and the output with references to them.
    """
    env = {node.name: feed for node, feed in zip(other.program.inputs, feeds, strict=True)}
    rename = {name: prefixed(prefix, name) for name in other.states}
    rename |= {f"module.{path}": f"module.{prefixed(prefix, path)}" for path in other.program.opaque}
    nodes, known = copied((node for node in other.program if node.kind != "input"), taken, env, rename)
    return nodes, follow(other.program.output, known)


def prefixed(prefix: str, name: str) -> str:
    """A state's name below a prefix."""
    return f"{prefix}.{name}" if prefix else name


def as_graph(part: Graph | nn.Module, value: Any) -> Graph:
    """A graph, or the trace of a module on a value; one tensor in, one out.

    Raises:
        TypeError: neither a graph nor a module.
        PliantError: it takes or gives several tensors.
    """
    if isinstance(part, nn.Module):
        part = trace(part, value)
    if not isinstance(part, Graph):
        raise TypeError(f"a Graph or an nn.Module is needed, got {type(part).__name__}")
    if len(part.program.inputs) != 1 or not isinstance(part.program.output, Ref):
        raise PliantError("a part that is put into a network takes one tensor and returns one",
                          fix="wrap it in a module with one input and one output")  # fmt: skip
    return part


def place_of(graph: Graph, at: str) -> str:
    """The node whose value is meant by a span (its sum), a module path (what it returns) or a node name.

    Raises:
        ValueError: there is no such place.
        PliantError: a module that returns several values.
    """
    if at in graph.span_names:
        return graph.spans[graph.span_names.index(at)].merge
    inside = {n.name for n in graph.program if n.kind == "call" and (n.module == at or n.module.startswith(f"{at}."))}
    if not inside and any(node.name == at for node in graph.program):
        return at
    if not inside or not at:
        raise ValueError(f"{at!r} is no span, no module that is called and no node of the network")
    outside = [node for node in graph.program if node.name not in inside]
    read = {ref.name for node in outside for ref in refs((node.args, node.kwargs))}
    read |= {ref.name for ref in refs(graph.program.output)}
    left = [n.name for n in graph.program if n.name in inside & read and (n.name, 0) in graph.analysis.shapes]
    if len(left) != 1:
        raise PliantError(f"it gives out {len(left)} values, one is needed", where=at, fix="name a node instead")
    return left[0]
