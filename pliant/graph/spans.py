"""Spans: parts of a network that can be skipped.

`y = x + f(x)` without `f` is `y = x`. Where an addition's one operand is an ancestor of the other and the part between
them holds parameters, that part is a residual span.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pliant.graph.analyse import Analysis
from pliant.graph.ir import TRAINING, Node, Program, Ref, argument, refs, writes_state


@dataclass(frozen=True)
class Span:
    """A residual branch: `merge` adds `branch` to `shortcut`; skipped, `merge` is its shortcut."""

    merge: str
    shortcut: str
    branch: str
    nodes: tuple[str, ...]
    module: str


def find_spans(program: Program, analysis: Analysis, tensors: Mapping[str, Tensor], trainable: set[str]) -> list[Span]:
    """Every residual span, in program order."""
    nodes = {node.name: node for node in program}
    spans = []
    for node in program:
        if node.packet != "aten.add" or not all(isinstance(arg, Ref) for arg in node.args[:2]):
            continue
        first, second = node.args[0].name, node.args[1].name
        shape = analysis.shapes.get((node.name, 0))
        if not (analysis.shapes.get((first, 0)) == analysis.shapes.get((second, 0)) == shape):
            continue
        if first == second:
            continue
        scaled = argument(node, "alpha", 1) != 1  # first + alpha * second: only the first one can stay alone
        before_second, before_first = _ancestors(nodes, second), _ancestors(nodes, first)
        if first in before_second:
            shortcut, branch = first, second
        elif second in before_first and not scaled:
            shortcut, branch = second, first
        else:
            continue
        own = _exclusive(program, node, branch)
        if any(_writes_activation(nodes, nodes[name]) for name in own):
            continue
        if any(nodes[name].kind == "state" and nodes[name].target in trainable for name in own):
            spans.append(Span(node.name, shortcut, branch, tuple(own), _module([nodes[name] for name in own], tensors)))
    return spans


def _writes_activation(nodes: dict[str, Node], node: Node) -> bool:
    """Whether a call changes a value in place that others may see."""
    if not writes_state(node) or node.packet in ("aten.batch_norm", "aten.instance_norm"):
        return False
    written = node.args[0]
    return not (isinstance(written, Ref) and nodes[written.name].kind == "state")


def _ancestors(nodes: dict[str, Node], name: str) -> set[str]:
    seen: set[str] = set()
    stack = [name]
    while stack:
        node = nodes[stack.pop()]
        for ref in refs((node.args, node.kwargs)):
            if ref.name not in seen and ref.name != TRAINING:
                seen.add(ref.name)
                stack.append(ref.name)
    return seen


def guards(program: Program, spans: list[Span]) -> dict[str, frozenset[int]]:
    """For every node the spans that must all be kept for it to be needed."""
    branch_of: dict[str, list[tuple[int, str]]] = {}
    for i, span in enumerate(spans):
        branch_of.setdefault(span.merge, []).append((i, span.branch))
    needed: dict[str, frozenset[int]] = {ref.name: frozenset() for ref in refs(program.output)}
    of_module: dict[str, frozenset[int]] = {}
    for node in reversed(program.nodes):
        own = needed.get(node.name)
        if own is None:
            if not writes_state(node):
                continue
            own = needed[node.name] = of_module.get(node.module, frozenset())  # a counter runs with its module
        of_module[node.module] = own
        for ref in refs((node.args, node.kwargs)):
            extra = {i for i, branch in branch_of.get(node.name, ()) if branch == ref.name}
            path = own | extra
            needed[ref.name] = needed[ref.name] & path if ref.name in needed else path
    return needed


def _exclusive(program: Program, merge: Node, branch: str) -> list[str]:
    """Nodes that only the branch needs."""
    span = Span(merge.name, "", branch, (), "")
    needed = guards(program, [span])
    return [node.name for node in program if 0 in needed.get(node.name, frozenset())]


def _module(own: list[Node], tensors: Mapping[str, Tensor]) -> str:
    """The module that holds the branch: the path common to its weights (vectors only where there is nothing else)."""
    states = [node.target for node in own if node.kind == "state"]
    weights = [name for name in states if tensors[name].dim() > 1] or states
    return common_path([name.rpartition(".")[0] for name in weights]) or weights[0].rpartition(".")[0]


def common_path(paths: list[str]) -> str:
    """The longest dotted prefix that all paths share."""
    split = [path.split(".") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
