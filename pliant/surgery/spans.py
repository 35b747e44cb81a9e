"""Surgery on spans: skip, repeat and replace residual branches, put parts in.

Places are named as elsewhere: a span (`depth:layer1.0`, meaning its sum), a module path (what the module returns), or
a node of the program. Every function returns a new graph.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.graph.graph import Graph
from pliant.graph.ir import TRAINING, Node, Ref, refs
from pliant.graph.spans import Span
from pliant.surgery.program import (
    as_graph,
    carries,
    copied,
    demand_same,
    follow,
    inlined,
    outputs,
    place_of,
    prefixed,
    redirected,
    remake,
    run_node,
    unique,
    values,
)

INITS = ("zero", "copy")


def span_of(graph: Graph, name: str) -> Span:
    """A span by its name.

    Raises:
        ValueError: there is no such span.
    """
    if name not in graph.span_names:
        raise ValueError(f"no span {name!r}; spans are {', '.join(graph.span_names) or '(none)'}")
    return graph.spans[graph.span_names.index(name)]


def skip(graph: Graph, spans: Sequence[str]) -> Graph:
    """The graph without some spans: `y = x + f(x)` becomes `y = x`, and what only f used is gone.

    Raises:
        ValueError: an unknown span.
    """
    gone = [span_of(graph, name) for name in ([spans] if isinstance(spans, str) else spans)]
    skipped = graph.skipped([span not in gone for span in graph.spans[: len(graph.span_names)]])
    shortcut = {span.merge: span.shortcut for i, span in enumerate(graph.spans) if i in skipped}
    env: dict[str, Ref] = {}
    nodes = []
    for node in graph.program:
        if node.name in shortcut:
            env[node.name] = env.get(shortcut[node.name], Ref(shortcut[node.name]))
        elif node.kind == "input" or graph.is_needed(node.name, skipped):
            nodes.append(redirected(node, env))
    return remake(graph, nodes, follow(graph.program.output, env))


def repeat(graph: Graph, spans: Mapping[str, int], *, init: str = "zero") -> Graph:
    """Spans once more, behind themselves: `y = x + f(x)` is followed by `z = y + g(y)`, g shaped like f.

    The copies' states are called `<module>.repeats.<number>...`, and their spans accordingly. A copy has parameters of
    its own; what else the branch reads besides its shortcut (masks, positions) is shared.

    Args:
        graph: a traced network; it is not changed.
        spans: how many copies of which branches, or of which blocks.
        init: "zero": the maps (or norms) that end each copy are zero, so that the function stays the same (as in
            zero-initialised residual branches, Goyal et al. 2017, arXiv:1706.02677); "copy": each copy computes what
            the span computes, so that the function changes (depth up-scaling, Kim et al. 2023, arXiv:2312.15166).

    Raises:
        ValueError: an unknown span or init, or a number below 1.
        PliantError: no parameters of the span can make it change nothing.
    """
    for name, times in spans.items():
        span_of(graph, name)
        if init not in INITS or times < 1:
            raise ValueError(f"copies of {name} must be at least 1, got {times}; init is zero or copy, got {init!r}")
    for name, times in spans.items():
        for _ in range(times):
            graph = _repeated(graph, span_of(graph, name), init)
    return graph


def _repeated(graph: Graph, own: Span, init: str) -> Graph:
    inside = {*own.nodes, own.merge}
    reads = {r.name for node in graph.program if node.name in inside for r in refs((node.args, node.kwargs))}
    shared = {node.name for node in graph.program.states if node.name in reads and node.target in graph.parameters}
    branch = [node for node in graph.program if node.name in inside | shared]
    if any(node.target.startswith("module.") for node in branch):
        raise PliantError("a sub-module that runs as it is cannot be copied", where=own.module)
    rename = _renamed(branch, own.module, set(graph.states))
    states = {new: _clone(graph.states[old]) for old, new in rename.items()}
    taken = {node.name for node in graph.program}
    added, env = copied(branch, taken, {own.shortcut: Ref(own.merge)}, rename)
    if init == "zero":
        silence(added, _Trial(graph, own, env), states)
    deeper = _behind(graph, own.merge, added, env[own.merge], states=states)
    if init == "zero":
        demand_same(graph, outputs(deeper), own.module, "is not left as it was by a span that starts at zero")
    return deeper


def _renamed(nodes: Sequence[Node], module: str, taken: set[str]) -> dict[str, str]:
    """New names for the states of a copy, below `<module>.repeats.<number>`."""
    old = dict.fromkeys(node.target for node in nodes if node.kind == "state")
    base, count = prefixed(module, "repeats"), 0
    while any(name.startswith(f"{base}.{count}.") for name in taken):
        count += 1
    return {name: f"{base}.{count}.{name.removeprefix(f'{module}.') if module else name}" for name in old}


def _clone(tensor: Tensor) -> Tensor:
    new = tensor.detach().clone()
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def _behind(graph: Graph, place: str, added: Sequence[Node], current: Ref, *, states: Mapping[str, Tensor],
            also: Sequence[tuple[Graph, str]] = ()) -> Graph:  # fmt: skip
    """The graph with nodes put behind a place; whoever read the place's value reads `current` from then on."""
    nodes: list[Node] = []
    env: dict[str, Ref] = {}
    for node in graph.program:
        nodes.append(redirected(node, env))
        if node.name == place:
            nodes += added
            env = {place: current}
    return remake(graph, nodes, follow(graph.program.output, env), states=states, also=also)


# -- spans that change nothing ---------------------------------------------------------------------------------------


class _Trial:
    """What new nodes behind a span's end are tried on, and what they must give to change nothing.

    A branch reads random values in the place of its shortcut and must give zeros. A block reads what the span before it
    gives on the example (behind a ReLU nothing else occurs) and must give the same.
    """

    def __init__(self, graph: Graph, span: Span, env: Mapping[str, Ref]) -> None:
        self.program = graph.program
        self.known = values(graph, [node.name for node in graph.program]) | {TRAINING: False}
        self.out = env[span.branch or span.merge].name
        reads = self.known[span.merge]
        if span.branch:
            reads = torch.randn(reads.shape, generator=torch.Generator().manual_seed(0)).to(reads)
        self.known[span.merge] = reads
        self.wanted = torch.zeros_like(reads) if span.branch else reads

    def passes(self, nodes: Sequence[Node], states: Mapping[str, Tensor]) -> bool:
        """Whether the new nodes give what is wanted."""
        env = dict(self.known)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for node in nodes:
                env[node.name] = (
                    states[node.target].clone() if node.kind == "state" else run_node(self.program, node, env)
                )
        return torch.equal(env[self.out], self.wanted)


def silence(nodes: Sequence[Node], trial: _Trial, states: dict[str, Tensor]) -> None:
    """Set parameters among `states` to zero so that new nodes change nothing: few, and late ones.

    They are found by trying: calls are gone through from the end, their parameters set to zero until the trial is
    passed, and those that were not needed are put back.

    Raises:
        PliantError: there are none.
    """
    where = {node.name: node.target for node in nodes if node.kind == "state"}
    for node in nodes:
        first = next(refs((node.args, node.kwargs)), None)
        if first is not None and first.name in where and carries(node):
            where[node.name] = where[first.name]
    tried: dict[str, Tensor] = {}
    for node in reversed(nodes):
        names = dict.fromkeys(where[ref.name] for ref in refs((node.args, node.kwargs)) if ref.name in where)
        own = [] if node.name in where else [n for n in names if n not in tried and isinstance(states[n], nn.Parameter)]
        for name in own:
            tried[name], states[name] = states[name], _zeros(states[name])
        if own and trial.passes(nodes, states):
            break
    else:
        fix = 'keep its weights with init="copy", which changes what the network computes'
        raise PliantError("no parameters of this part make it change nothing", where=nodes[-1].place, fix=fix)
    for name, tensor in tried.items():
        zero, states[name] = states[name], tensor
        if not trial.passes(nodes, states):
            states[name] = zero


def _zeros(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.zeros_like(tensor), tensor.requires_grad)


# -- other graphs put in ---------------------------------------------------------------------------------------------


def insert(graph: Graph, parts: Mapping[str, Graph | nn.Module], *, residual: bool = True, init: str = "zero",
           prefix: str = "inserted") -> Graph:  # fmt: skip
    """Parts behind places: what is read there becomes `v + part(v)`, or `part(v)`.

    Args:
        graph: a traced network; it is not changed.
        parts: by place (a span: behind its sum; a module path: behind it; or a node) a traced graph of one tensor to
            one of the same shape, or a module, which is traced on the value there.
        residual: whether a part is added to what goes by; else it takes its place.
        init: of a residual part. "zero": the map that ends it is set to zero, so that the function stays the same;
            "copy": its weights stay as given.
        prefix: of the parts' states' names; a number is added where it is taken.

    Raises:
        ValueError: no such place, or an unknown init.
        PliantError: a part does not keep the shape, or cannot be made zero.
    """
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    for at, part in parts.items():
        place = place_of(graph, at)
        other = as_graph(part, values(graph, [place])[place])
        _fits(graph, other, (place, place), at)
        name = free_prefix(graph, prefix)
        taken = {node.name for node in graph.program}
        added, out = inlined(other, [Ref(place)], taken, name)
        states = _cloned(other, name)
        if residual and init == "zero":
            silence(added, _Trial(graph, Span(place, place, place, (), ""), {place: out}), states)
        if residual:
            total = Node(unique(f"{place}_sum", taken), "call", "aten.add.Tensor", (Ref(place), out), module=name)
            added, out = [*added, total], Ref(total.name)
        graph = _behind(graph, place, added, out, states=states, also=[(other, name)])
    return graph


def _cloned(other: Graph, prefix: str) -> dict[str, Tensor]:
    """Copies of a graph's states under their new names; tied ones stay tied."""
    copies = {id(tensor): _clone(tensor) for tensor in other.states.values()}
    return {prefixed(prefix, name): copies[id(tensor)] for name, tensor in other.states.items()}


def free_prefix(graph: Graph, wanted: str) -> str:
    """A prefix that no state of the graph has."""
    taken = set(graph.states) | {name[:i] for name in graph.states for i, letter in enumerate(name) if letter == "."}
    return unique(wanted, taken)


def _fits(graph: Graph, other: Graph, ends: tuple[str, str], where: str) -> None:
    """Whether a part takes and gives what stands at two places, the batch aside."""
    shapes = [graph.analysis.shapes[end, 0][1:] for end in ends]
    own = [other.program.inputs[0].name, other.program.output.name]
    theirs = [other.analysis.shapes[end, 0][1:] for end in own]
    if shapes != theirs:
        raise PliantError(f"the part maps {list(theirs[0])} to {list(theirs[1])} (without the batch), "
                          f"{list(shapes[0])} to {list(shapes[1])} is needed", where=where)  # fmt: skip


def replace(graph: Graph, parts: Mapping[str, Graph | nn.Module], *, prefix: str = "replaced") -> Graph:
    """The branches of spans replaced: `y = x + f(x)` becomes `y = x + part(x)`; a block `y = f(x)` becomes `part(x)`.

    Args:
        graph: a traced network; it is not changed.
        parts: by span a traced graph of one tensor to one, or a module, which is traced on what the branch reads.
        prefix: of the parts' states' names; a number is added where it is taken.

    Raises:
        ValueError: an unknown span.
        PliantError: a branch reads several values, or a part does not give what the branch gave.
    """
    for span, part in parts.items():
        own = span_of(graph, span)
        entry = _entry(graph, own)
        other = as_graph(part, values(graph, [entry])[entry])
        _fits(graph, other, (entry, own.branch or own.merge), span)
        name = free_prefix(graph, prefix)
        added, out = inlined(other, [Ref(entry)], {node.name for node in graph.program}, name)
        nodes: list[Node] = []
        env: dict[str, Ref] = {}
        for node in graph.program:
            if node.name == own.merge:
                nodes += added
                env = {own.branch or own.merge: out}
            if node.name not in own.nodes and (own.branch or node.name != own.merge):
                nodes.append(redirected(node, env))
        output = follow(graph.program.output, env)
        graph = remake(graph, nodes, output, states=_cloned(other, name), also=[(other, name)])
    return graph


def _entry(graph: Graph, span: Span) -> str:
    """The value that a span's nodes read: the shortcut, or another one where they read that alone."""
    inside = {*span.nodes} | ({span.merge} if not span.branch else set())
    states = {node.name for node in graph.program.states}
    reads = {ref.name for node in graph.program if node.name in inside for ref in refs((node.args, node.kwargs))}
    reads = {name for name in reads - inside - states if (name, 0) in graph.analysis.shapes}
    if span.shortcut in reads:
        return span.shortcut
    if len(reads) != 1:
        raise PliantError(f"it reads {len(reads)} values, one is needed", where=span.module)
    return reads.pop()


# -- cutting and chaining --------------------------------------------------------------------------------------------
