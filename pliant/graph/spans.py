"""Spans: parts of a network that can be skipped.

`y = x + f(x)` without `f` is `y = x`. Where an addition's one operand is an ancestor of the other and the part between
them holds parameters, that part is a residual span. So is each branch of `x + f(x) + g(x)`, and what a gate mixes with
`x`. Whole modules that keep the shape of their input are spans where they are asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pliant.graph.analyse import Analysis
from pliant.graph.inner import common_path as common_path
from pliant.graph.ir import TRAINING, Node, Program, Ref, argument, may_alias, refs, writes_state

Guard = tuple[frozenset[int], ...]
"""Sets of spans: what has it is needed where all spans of one of them are kept."""
ALWAYS: Guard = (frozenset(),)
_MANY = 64
_STATISTICS = ("aten.batch_norm", "aten.instance_norm")
"""Operators that write to buffers of theirs besides what they give out."""


@dataclass(frozen=True)
class Span:
    """A part that can be skipped: then the value of `merge` is its `shortcut`.

    Args:
        merge: the call at which it ends.
        shortcut: the value that stands for it.
        branch: the operand of `merge` that goes with it; empty where `merge` goes as a whole.
        nodes: what is needed for it alone.
        module: the path of the module that holds it.
        kind: depth (a branch) or block (a module).
        parts: of a sum of branches that are spans themselves their numbers. It has no name: it goes where they all do.
    """

    merge: str
    shortcut: str
    branch: str
    nodes: tuple[str, ...]
    module: str
    kind: str = "depth"
    parts: tuple[int, ...] = ()


def find_spans(program: Program, analysis: Analysis, tensors: Mapping[str, Tensor], trainable: set[str]) -> list[Span]:
    """Branches in program order, then blocks from the smallest on, then sums whose branches are spans."""
    finder = _Finder(program, analysis, tensors, trainable)
    found = [finder.parts(span, span.shortcut) for span in finder.branches()]
    blocks = [finder.span(ends[1], ends[0], "") for _, *ends in analysis.blocks]
    named = [
        replace(span, module=block.module, kind="block")
        for (block, *_), span in zip(analysis.blocks, blocks, strict=True)
        if span is not None
    ]
    spans = [span for single, _ in found for span in single] + sorted(named, key=lambda span: len(span.nodes))
    for sums in (sums for _, sums in found):
        for span, addition in sums:
            ends = [span.merge for span in spans]
            parts = [i for i, other in enumerate(spans) if ends[i] == addition and other.kind == "depth"]
            spans.append(replace(span, parts=tuple(parts)))
    return spans


def closed(spans: Sequence[Span], kept: Sequence[bool]) -> tuple[bool, ...]:
    """Which of all spans are kept, given those that have a name: sums go with their last branch."""
    every = [*kept[: len(spans)], *[True] * (len(spans) - len(kept))]
    for i, span in enumerate(spans):
        if span.parts:
            every[i] = any(every[part] for part in span.parts)
    return tuple(every)


class _Finder:
    """Looks for additions (and gates) of a value and something made of it."""

    def __init__(
        self, program: Program, analysis: Analysis, tensors: Mapping[str, Tensor], trainable: set[str]
    ) -> None:
        self.program, self.analysis, self.tensors = program, analysis, tensors
        self.nodes = {node.name: node for node in program}
        self.bit = {node.name: 1 << i for i, node in enumerate(program)}
        self.before: dict[str, int] = {TRAINING: 0}
        self.weights: dict[str, list[str]] = {}
        for node in program:
            operands = [ref.name for ref in refs((node.args, node.kwargs)) if ref.name != TRAINING]
            mask = 0
            for name in operands:
                mask |= self.before[name] | self.bit[name]
            self.before[node.name] = 0 if node.packet == "aten.sym_size" else mask  # a size is none of the data
            states = [self.nodes[name].target for name in operands if self.nodes[name].kind == "state"]
            self.weights[node.name] = [name for name in states if name in trainable]
        self.memory = _memory(program)
        self.data = sum(self.bit[node.name] for node in program.inputs)
        self.trunk = dict(self.bit)
        self.merges: set[str] = set()

    def branches(self) -> Iterator[Span]:
        """Every branch; a value's trunk is what it was before branches were added to it, or in another form."""
        for node in self.program:
            if node.kind == "call" and node.args and isinstance(node.args[0], Ref) and _same(node):
                self.trunk[node.name] |= self.trunk[node.args[0].name]
            for shortcut, branch in self._pairs(node):
                span = self.span(node.name, shortcut, branch)
                if span is not None:
                    self.trunk[node.name] |= self.trunk[shortcut]
                    self.merges.add(node.name)
                    yield span
                    break

    def _pairs(self, node: Node) -> list[tuple[str, str]]:
        """What a call could be without one of its operands: (what stays, what goes), the likeliest first."""
        names = [arg.name for arg in node.args[:3] if isinstance(arg, Ref)]
        stays = _STAYS.get(node.packet)
        if stays is None or len(names) < 2 or not all(isinstance(arg, Ref) for arg in node.args[:2]):
            return []
        shape = self.analysis.shapes.get((node.name, 0))
        if stays == "whole":
            others = [name for name in names[1:] if self.made_of(names[0], name)]
            return [(names[0], "")] if others and self.analysis.shapes.get((names[0], 0)) == shape else []
        first, second = names[:2]
        if first == second or any(self.analysis.shapes.get((name, 0)) != shape for name in (first, second)):
            return []
        both = [(first, second), (second, first)]
        scaled = argument(node, "alpha", 1) != 1  # first + alpha * second: only the first one can stay alone
        able = both if stays == "both" and not scaled else both[stays == "second" :][:1]
        direct = [(stay, go) for stay, go in able if self.before[go] & self.bit[stay]]
        after = [(stay, go) for stay, go in both if self.made_of(stay, go)]
        indirect = [pair for pair in able if after == [pair]]  # not where each one adds to what the other one adds to
        return direct or indirect or (self._gate(first, second) if stays == "both" else [])

    def made_of(self, value: str, other: str) -> bool:
        """Whether a value, or what it was before branches were added to it, is an ancestor of another one."""
        return bool(self.before[other] & self.trunk[value])

    def _gate(self, first: str, second: str) -> list[tuple[str, str]]:
        """`(1 - t) x + t h`, with `h` made of `x`, is `x` where the gate is shut."""
        sides = [[arg.name for arg in self.nodes[name].args if isinstance(arg, Ref)] for name in (first, second)]
        if any(self.nodes[name].packet != "aten.mul" for name in (first, second)) or any(len(s) != 2 for s in sides):
            return []
        for (x, t), (h, u) in ((a, b) for a in (sides[0], sides[0][::-1]) for b in (sides[1], sides[1][::-1])):
            if self._complement(t, u) or self._complement(u, t):
                made = [stay for stay, go in ((x, h), (h, x)) if self.made_of(stay, go) and self._weighs(stay, go)]
                return [(stay, "") for stay in made if self._alike(stay, first)]
        return []

    def _weighs(self, value: str, other: str) -> bool:
        """Whether weights lie between two values."""
        between = (self.before[other] | self.bit[other]) & ~(self.before[value] | self.bit[value])
        return any(names and self.bit[name] & between for name, names in self.weights.items())

    def _complement(self, gate: str, other: str) -> bool:
        """Whether one value is one minus another."""
        return self.nodes[gate].packet == "aten.rsub" and self.nodes[gate].args == (Ref(other), 1)

    def _alike(self, one: str, other: str) -> bool:
        return self.analysis.shapes[one, 0] == self.analysis.shapes[other, 0]

    def span(self, merge: str, shortcut: str, branch: str) -> Span | None:
        """A span, if what it alone needs has weights and writes over nothing that others see."""
        needed = guards(self.program, [Span(merge, shortcut, branch, (), "")])
        alone = (frozenset([0]),)
        own = [node for node in self.program if needed.get(node.name) == alone]
        weights = [name for node in own for name in self.weights[node.name]]
        if branch == "":
            weights += self.weights[merge]
        names = {node.name for node in own}
        if not weights or any(self._seen(node, names) for node in own):
            return None
        direct = any(Ref(shortcut) in refs(node.args) for node in own)
        if not direct and not (self.before[shortcut] | self.bit[shortcut]) & self.data:
            return None  # made of weights alone, and the branch is not made of it: biases of scores
        used = [node.target for node in own if node.kind == "state"] or weights
        wide = [name for name in used if self.tensors[name].dim() > 1] or used
        module = common_path([name.rpartition(".")[0] for name in wide]) or wide[0].rpartition(".")[0]
        return Span(merge, shortcut, branch, tuple(node.name for node in own), module)

    def _seen(self, node: Node, own: set[str]) -> bool:
        """Whether a call changes a value in place that others than its own neighbours may see."""
        if not writes_state(node) or node.packet in _STATISTICS:
            return False
        written = node.args[0]
        root = self.memory.get(written.name, "") if isinstance(written, Ref) else ""
        return root not in own and (root not in self.nodes or self.nodes[root].kind != "state")

    def parts(self, span: Span, base: str) -> tuple[list[Span], list[tuple[Span, str]]]:
        """A span, or where its branch is a sum of several made of `base` theirs, and the sums with their additions."""
        name = span.branch
        while name and "dropout" in self.nodes[name].packet:
            name = self.nodes[name].args[0].name
        node = self.nodes.get(name)
        terms = [arg.name for arg in node.args[:2] if isinstance(arg, Ref)] if node is not None else []
        if (
            node is None or node.packet != "aten.add" or name in self.merges or len(terms) < 2
            or argument(node, "alpha", 1) != 1 or any(not self._alike(term, name) for term in terms)
            or not all(self.made_of(base, term) for term in terms)
        ):  # fmt: skip
            return [span], []
        pair = [self.span(name, stay, go) for stay, go in (terms, terms[::-1])]
        if any(part is None for part in pair):
            return [span], []
        inner = [self.parts(part, base) for part in pair if part is not None]
        return [s for single, _ in inner for s in single], [s for _, sums in inner for s in sums] + [(span, name)]


_STAYS = {"aten.add": "both", "aten.sub": "first", "aten.rsub": "second", "aten.addcmul": "whole", "aten.lerp": "whole"}
"""Which operand a call may be without the other one: `rsub` takes its first one from its second."""


def guards(program: Program, spans: Sequence[Span]) -> dict[str, Guard]:
    """For every node when it is needed; what is missing is never needed."""
    ends: dict[str, list[tuple[int, Span]]] = {}
    for i, span in enumerate(spans):
        ends.setdefault(span.merge, []).append((i, span))
    shared: dict[str, list[str]] = {}
    memory = _memory(program)
    for name, root in memory.items():
        shared.setdefault(root, []).append(name)
    states = {node.name for node in program.states}
    needed: dict[str, Guard] = {ref.name: ALWAYS for ref in refs(program.output)}
    of_module: dict[str, Guard] = {}
    for node in reversed(program.nodes):
        written = memory[node.args[0].name] if writes_state(node) and isinstance(node.args[0], Ref) else ""
        if written and written not in states and node.packet not in _STATISTICS:
            for name in shared[written]:  # a write runs with whoever reads the memory after it
                _need(needed, node.name, needed.get(name, ()), [])
        own = needed.get(node.name)
        if not own:
            if not writes_state(node):
                continue
            own = needed[node.name] = of_module.get(node.module, ALWAYS)  # a counter runs with its module
        of_module[node.module] = own
        here = ends.get(node.name, [])
        whole = [i for i, span in here if not span.branch]
        for ref in refs((node.args, node.kwargs)):
            _need(needed, ref.name, own, [*whole, *(i for i, span in here if span.branch == ref.name)])
        for i, span in here:
            if not span.branch:
                _need(needed, span.shortcut, own, whole[whole.index(i) + 1 :])  # later ones lie around it
    return needed


def _same(node: Node) -> bool:
    """Whether a call gives its operand out in another form."""
    return node.packet in ("aten.to", "aten._to_copy", "aten.contiguous", "aten.clone") or (
        may_alias(node.target) and not writes_state(node)
    )


def _memory(program: Program) -> dict[str, str]:
    """Whose memory each value may share."""
    found: dict[str, str] = {}
    for node in program:
        first = node.args[0] if node.kind == "call" and node.args else None
        aliased = isinstance(first, Ref) and first.name in found and may_alias(node.target)
        found[node.name] = found[first.name] if aliased else node.name  # type: ignore[union-attr]
    return found


def _need(needed: dict[str, Guard], name: str, own: Guard, extra: list[int]) -> None:
    """Enter a further use of a value."""
    sets = {*needed.get(name, ()), *(kept | set(extra) for kept in own)}
    least = [one for one in sets if not any(other < one for other in sets)]
    if len(least) > _MANY:  # computed somewhat too often
        least = [frozenset.intersection(*least)]
    needed[name] = tuple(sorted(least, key=sorted))
