"""Inner units: the other way of cutting an axis that is made of an outer and an inner one.

The channels of an attention are heads times dimensions, those of a grouped convolution or a group normalisation are
groups times channels. By default the outer part bends: a unit is a whole head or group. Where `head_dim:` or
`channels:` is asked for of a module, the inner part bends there instead: every head or group loses the same ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pliant.graph.ir import Node, Program, argument, refs

if TYPE_CHECKING:
    from pliant.graph.analyse import Analysis

HEAD_DIM, CHANNELS = "head_dim", "channels"
_PRODUCTS = ("aten.matmul", "aten.bmm", "aten.baddbmm", "aten.einsum", "aten.scaled_dot_product_attention")
_STOPS = (*_PRODUCTS, "aten.linear", "aten.mm", "aten.addmm", "aten.conv1d", "aten.conv2d", "aten.conv3d",
          "aten.convolution", "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.embedding", "aten.lstm",
          "aten.gru")  # fmt: skip
"""Operators after which channels are others than before."""
_PARTS = ("qk", "v", "qkv")
Refused = list[tuple[str, Node | None, str]]


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits a knob; inner units are found by the modules around them, too."""
    kind, _, path = name.partition(":")
    paths = around(path) if kind in (HEAD_DIM, CHANNELS) else [path]
    return any(fnmatchcase(f"{kind}:{each}", pattern) for each in paths)


def around(path: str) -> Iterator[str]:
    """A module path and those of the modules around it, the network itself excepted."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def wanted(kind: str, names: Iterable[str], asked: Sequence[str]) -> bool:
    """Whether a pattern that names the kind itself fits one of some names."""
    patterns = [pattern for pattern in asked if pattern.startswith(f"{kind}:")]
    return any(fits(f"{kind}:{name}", pattern) for name in names for pattern in patterns)


def common_path(paths: Sequence[str]) -> str:
    """The longest dotted prefix that all paths share."""
    split = [path.split(".") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


@dataclass(frozen=True)
class Attention:
    """An attention.

    Args:
        module: path of the module that makes its products.
        scores: calls that multiply queries and keys.
        averages: calls that average values (the same one where it is fused).
        towards: calls that lead to the scores.
        along: calls that lead to the values, and from their averages on.
    """

    module: str
    scores: tuple[str, ...]
    averages: tuple[str, ...]
    towards: frozenset[str]
    along: frozenset[str]


class _Walker:
    """Walks from value to value, not beyond the calls that change what channels are."""

    def __init__(self, program: Program) -> None:
        self.nodes = {node.name: node for node in program}
        self.users: dict[str, list[str]] = {}
        for node in program:
            for name in self._read(node):
                self.users.setdefault(name, []).append(node.name)

    def attentions(self) -> Iterator[Attention]:
        """Every attention: a fused call, or a softmax between two products."""
        for node in self.nodes.values():
            name, operands = {node.name}, self._read(node)
            if node.packet == _PRODUCTS[-1]:
                yield self._attention(name, name, name, operands[:2], operands[2:3])
            elif node.packet in ("aten.softmax", "aten._softmax"):
                (scores, before), (averages, after) = self.back(operands), self.forth(name)
                scores, averages = (
                    {n for n in some if self.nodes[n].packet in _PRODUCTS} for some in (scores, averages)
                )
                inside = before | name | after
                values = [value for n in averages for value in self._read(self.nodes[n]) if value not in inside]
                if scores and values:
                    queries = [value for n in scores for value in self._read(self.nodes[n])]
                    yield self._attention(scores, averages, inside, queries, values)

    def _attention(self, scores: set[str], averages: set[str], inside: set[str], queries: list[str],
                   values: list[str]) -> Attention:  # fmt: skip
        module = common_path([self.nodes[name].module for name in scores | averages])
        towards, along = (
            self.back(queries)[1] | inside | scores,
            self.back(values)[1] | self.forth(averages)[1] | averages,
        )
        return Attention(module, tuple(sorted(scores)), tuple(sorted(averages)), frozenset(towards), frozenset(along))

    def _read(self, node: Node) -> list[str]:
        return [ref.name for ref in refs((node.args, node.kwargs))]

    def back(self, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """The calls that made the channels of some values, and those from there on."""
        return self._walk(names, self._read)

    def forth(self, names: Iterable[str]) -> tuple[set[str], set[str]]:
        """The calls in which the channels of some values end, and those up to there."""
        starts = [user for name in names for user in self.users.get(name, ())]
        return self._walk(starts, lambda node: self.users.get(node.name, []))

    def _walk(self, names: Iterable[str], further: Callable[[Node], list[str]]) -> tuple[set[str], set[str]]:
        met: set[str] = set()
        seen: set[str] = set()
        stack = [*names]
        while stack:
            node = self.nodes.get(stack.pop())
            if node is not None and node.packet in _STOPS:
                met.add(node.name)
            elif node is not None and node.kind == "call" and node.name not in seen:
                seen.add(node.name)
                stack += further(node)
        return met, seen


def _has_groups(node: Node) -> bool:
    norm = node.packet in ("aten.group_norm", "aten.native_group_norm")
    return norm or (node.packet.startswith("aten.conv") and argument(node, "groups", 1) != 1)


class Inner:
    """What was asked for: which calls bend by inner units, and what these are called.

    Args:
        program: what `capture` gives.
        asked: knob-name patterns.

    Attributes:
        calls: node name to the kind of inner units that bend there.
        lost: calls at which some of them became fixed, entered by the analysis.
    """

    def __init__(self, program: Program, asked: Sequence[str]) -> None:
        self.asked = asked
        self.attentions: list[Attention] = []
        self.grouped: list[Node] = []
        self.lost: list[Node] = []
        if any(pattern.startswith((f"{HEAD_DIM}:", f"{CHANNELS}:")) for pattern in asked):
            walker = _Walker(program)
            self.attentions = [
                a for a in walker.attentions() if wanted(HEAD_DIM, [_join(a.module, p) for p in _PARTS], asked)
            ]
            self.grouped = self._grouped([node for node in program if _has_groups(node)], walker)
        self.calls = {name: HEAD_DIM for a in self.attentions for name in a.towards | a.along}
        self.calls |= {node.name: CHANNELS for node in self.grouped}

    def _grouped(self, every: list[Node], walker: _Walker) -> list[Node]:
        """Calls whose groups lose channels: those asked for, and then those with the same channels."""
        found = [n for n in every if wanted(CHANNELS, (_join(n.module, side) for side in ("in", "out")), self.asked)]
        for node in found:
            sides = walker.back([node.args[0].name]), walker.forth([node.name])
            found += [other for other in every if any(other.name in part for side in sides for part in side)
                      and other not in found]  # fmt: skip
        return found

    def names(self, analysis: "Analysis") -> tuple[dict[int, str], Refused]:
        """Group index to name: `head_dim:MODULE.qk`, `head_dim:MODULE.v` (or `.qkv` for both), `channels:MODULE`.

        And what was asked for and does not bend: module path, the call where it was lost (if known), and the reason.
        """

        def groups(name: str, *axes: int) -> list[int]:
            dims = len(analysis.shapes[name, 0])
            found = [analysis.axes.get((name, 0, axis % dims)) for axis in axes or range(dims)]
            return [int(g) for axis in found if axis is not None for g in axis.group if g >= 0]

        summed: dict[str, list[int]] = {}
        for reading in analysis.readings:
            if reading.how == "sum":
                own = [group for operand in reading.operands for group in groups(operand.name, operand.axis)]
                summed.setdefault(reading.node, []).extend(own)
        owners: dict[int, list[tuple[str, str]]] = {}
        refused: Refused = []
        for attention in self.attentions:
            v = [group for name in attention.averages for group in groups(name, -1) or groups(name, -2)]
            qk = [group for name in attention.scores for group in summed.get(name, [])]
            for group in dict.fromkeys(qk + v):
                owners.setdefault(group, []).append((attention.module, _PARTS[(group in qk) + 2 * (group in v) - 1]))
            for part, calls, there in (("qk", attention.towards, qk), ("v", attention.along, v)):
                if not there:
                    lost = next((node for node in self.lost if node.name in calls), None)
                    meets = "meet numbers that stay here (a rotary embedding, say)"
                    reason = f"{HEAD_DIM}: its dimensions {meets if lost else 'are tied to something that stays'}"
                    refused.append((_join(attention.module, part), lost, reason))
        names = {group: f"{HEAD_DIM}:{self._shared(own)}" for group, own in owners.items()}
        for node in self.grouped:
            read, made = groups(node.args[0].name), groups(node.name)
            split = not set(read) & set(made)
            for found, side in ((read, "in"), (made, "out")):
                for group in found:
                    names.setdefault(group, f"{CHANNELS}:{_join(node.module, side if split else '')}")
            if not read and not made:
                refused.append((node.module, node, f"{CHANNELS}: they are tied to something that stays"))
        return names, refused

    def _shared(self, owners: list[tuple[str, str]]) -> str:
        """What dimensions are called that one or more attentions share (by a rotary embedding, say)."""
        parts = {part for _, part in owners}
        name = _join(common_path([module for module, _ in owners]), parts.pop() if len(parts) == 1 else "qkv")
        return name if wanted(HEAD_DIM, [name], self.asked) else _join(*owners[0])


def _join(*parts: str) -> str:
    return ".".join(filter(None, parts))
