"""One ONNX graph for a whole family: shell 0 stands in it as it is, every further shell behind an `If`.

A switch of the graph's input `switches` turns one shell (or one block) on. ONNX Runtime packs a weight for its matrix
product once and frees the original where exactly one node reads it, and does so inside branches too; so no shell is
ever sliced or transposed in the graph, and nothing is joined that a sum can bring together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from pliant.deploy.match import Span
from pliant.deploy.plain_graph import Array, Plain, Unfit, constant, constant_node
from pliant.deploy.shells import Part, Values

SWITCHES = "switches"


@dataclass
class Family:
    """A graph of shells.

    Args:
        nodes: of the graph, in an order that can be run.
        weights: its initializers.
        labels: what each switch turns on: a part's number and shell, or the knob of a block.
    """

    nodes: list[Any]
    weights: dict[str, Array]
    labels: list[tuple[int, int] | str] = field(default_factory=list)


class Writer:
    """Writes a `Family` from parts and blocks.

    Args:
        whole: the largest graph.
        parts: what comes in shells.
        values: which values change their size.
        blocks: per knob the place of a block that some sub-network leaves out.
    """

    def __init__(self, whole: Plain, parts: Sequence[Part], values: Values, blocks: Mapping[str, Span]) -> None:
        self.whole, self.parts, self.values, self.blocks = whole, parts, values, blocks
        self.labels: list[tuple[int, int] | str] = [
            (number, shell) for number, part in enumerate(parts) for shell in range(1, part.shells)
        ]
        self.labels += sorted(blocks)
        self._number = {id(part): number for number, part in enumerate(parts)}
        self.weights: dict[str, Array] = {}

    def write(self) -> Family:
        """The graph.

        Raises:
            Unfit: it cannot be put in an order.
        """
        nodes: list[Any] = []
        owner = {number: part for part in self.parts for number in part.nodes}
        for number, node in enumerate(self.whole.nodes):
            part = owner.get(number)
            if part is None:
                nodes.append(node)
                self._keep(node)
                continue
            nodes += self._placed(part, number, 0)
            if number == max(part.nodes):
                for shell in range(1, part.shells):
                    nodes.append(self._shell(part, shell))
        nodes = ordered(self._heads() + nodes, [item.name for item in self.whole.inputs] + [SWITCHES, *self.weights])
        nodes = self._with_blocks(nodes)
        return Family(nodes, self.weights, self.labels)

    def _heads(self) -> list[Any]:
        """One value per switch."""
        names = [self.switch(label) for label in self.labels]
        sizes = constant_node("switches.sizes", np.ones(len(names), dtype=np.int64))
        return [sizes, helper.make_node("Split", [SWITCHES, "switches.sizes"], names, axis=0)]

    def switch(self, label: tuple[int, int] | str) -> str:
        """The value that turns on a shell or a block."""
        return f"switch.{self.labels.index(label)}"

    def _keep(self, node: Any) -> None:
        for name in node.input:
            if name in self.whole.weights:
                self.weights[name] = self.whole.weights[name].array

    # -- shells -------------------------------------------------------------------------------------------------------

    def _placed(self, part: Part, number: int, shell: int) -> list[Any]:
        """A node of a part as shell `shell` has it."""
        node = self.whole.nodes[number]
        if number in part.joints:
            return self._joint(part, number, shell)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self._read(part, name, shell) for name in node.input]
        copy.output[:] = [self._named(name, shell) for name in node.output]
        value = constant(node)
        if value is not None:
            scaled = _scaled(value, self.values.grown.get(node.output[0]), part.shares[shell])
            return [constant_node(copy.output[0], scaled)]
        if number in part.exits:
            copy.output[0] = f"{node.output[0]}~{shell}"
            if shell and len(copy.input) == 3:  # the bias is added once, with shell 0
                del copy.input[2]
        return [copy]

    def _named(self, name: str, shell: int) -> str:
        return f"{name}#{shell}" if shell and name in self.values else name

    def _read(self, part: Part, name: str, shell: int, inner: tuple[Part, int] | None = None) -> str:
        """The name under which shell `shell` reads a value or a weight, which is cut and kept."""
        if name not in self.whole.weights:
            return self._named(name, shell)
        array, cut = self.whole.weights[name].array, False
        for axis in range(array.ndim):
            for owner, number in ((part, shell), inner or (part, -1)):
                if number >= 0 and (name, axis) in owner.sets:
                    array, cut = np.take(array, owner.sets[name, axis][number], axis=axis), True
        suffix = f"#{inner[1]}" if inner is not None else ""
        key = f"{name}{suffix}#{shell}" if cut else name
        self.weights[key] = np.ascontiguousarray(array)
        return key

    def _joint(self, part: Part, number: int, shell: int) -> list[Any]:
        """What a shell receives from all shells of the part before: a sum that begins with that part's shell 0."""
        node, source = self.whole.nodes[number], part.joints[number]
        final = self._named(node.output[0], shell)
        nodes: list[Any] = []
        for other in range(source.shells):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[0] = f"{node.input[0]}#{other}.out" if other else node.input[0]
            copy.input[1] = self._read(part, node.input[1], shell, (source, other))
            last = other == source.shells - 1
            if other == 0:
                copy.input[2:] = [self._read(part, name, shell) for name in node.input[2:]]
                copy.output[0] = final if last else f"{final}~0"
                nodes.append(copy)
                continue
            del copy.input[2:]
            made = final if last else f"{final}~{other}"
            copy.output[0] = f"{made}.own"
            add = helper.make_node("Add", [f"{final}~{other - 1}", copy.output[0]], [f"{made}.in"])
            switch = self.switch((self._number[id(source)], other))
            nodes.append(_if(switch, [copy, add], {made: f"{made}.in"}, {made: f"{final}~{other - 1}"}))
        return nodes

    def _shell(self, part: Part, shell: int) -> Any:
        """A further shell: what it adds to the sums, and what joints of other parts read of it."""
        body = [
            node for number in part.nodes if self._needed(part, number) for node in self._placed(part, number, shell)
        ]
        made: dict[str, str] = {}
        without: dict[str, str | None] = {}
        for number in part.exits:
            name = self.whole.nodes[number].output[0]
            total = name if shell == part.shells - 1 else f"{name}~{shell}.sum"
            before = f"{name}~0" if shell == 1 else f"{name}~{shell - 1}.sum"
            body.append(helper.make_node("Add", [before, f"{name}~{shell}"], [f"{total}.in"]))
            made[total], without[total] = f"{total}.in", before
        for name in part.asked:
            made[f"{name}#{shell}.out"], without[f"{name}#{shell}.out"] = f"{name}#{shell}", None
        return _if(self.switch((self._number[id(part)], shell)), body, made, without)

    def _needed(self, part: Part, number: int) -> bool:
        """Values that are the same for all shells are taken from shell 0."""
        return number in part.exits or any(name in self.values for name in self.whole.nodes[number].output)

    # -- blocks -------------------------------------------------------------------------------------------------------

    def _with_blocks(self, nodes: list[Any]) -> list[Any]:
        """Put the nodes of every block behind an `If`, inner blocks before those around them."""
        outputs = [item.name for item in self.whole.outputs]
        sized = sorted((len(_lost(nodes, outputs, span)), knob) for knob, span in self.blocks.items())
        for _, knob in sized:
            begin, end = self.blocks[knob]
            lost = _lost(nodes, outputs, (begin, end))
            body = []
            for number in sorted(lost):
                copy = onnx.NodeProto()
                copy.CopyFrom(nodes[number])
                copy.output[:] = [f"{end}.block" if name == end else name for name in copy.output]
                copy.input[:] = [f"{end}.block" if name == end else name for name in copy.input]
                body.append(copy)
            if not body:
                raise Unfit(f"the block of {knob} is empty")
            branch = _if(self.switch(knob), body, {end: f"{end}.block"}, {end: begin})
            last = max(lost)
            nodes = [
                branch if number == last else node
                for number, node in enumerate(nodes)
                if number not in lost or number == last
            ]
        return nodes


def _scaled(value: Array, grows: Array | None, share: Fraction) -> Array:
    """A constant that counts units, for the units of one shell. Raises `Unfit` where that is no whole number."""
    if grows is None:
        return value
    scaled = value.astype(np.int64) * share.numerator
    if (scaled[grows] % share.denominator).any():
        raise Unfit(f"a size of {value.tolist()} cannot be divided among shells")
    return np.where(grows, scaled // share.denominator, value).astype(value.dtype)


def _lost(nodes: Sequence[Any], outputs: Iterable[str], span: Span) -> set[int]:
    """The nodes that nobody needs when the block is left out."""
    begin, end = span
    maker = {name: number for number, node in enumerate(nodes) for name in node.output}

    def reached(bypass: bool) -> set[int]:
        found: set[int] = set()
        left = list(outputs)
        while left:
            name = left.pop()
            number = maker.get(begin if bypass and name == end else name)
            if number is not None and number not in found:
                found.add(number)
                left += free(nodes[number])
        return found

    return reached(False) - reached(True)


def free(node: Any) -> list[str]:
    """The values a node reads, those its branches read from outside included."""
    found = [name for name in node.input if name]
    for item in node.attribute:
        if item.HasField("g"):
            made = {name for inner in item.g.node for name in inner.output}
            found += [name for inner in item.g.node for name in free(inner) if name not in made]
    return found


def _if(switch: str, body: list[Any], made: Mapping[str, str], without: Mapping[str, str | None]) -> Any:
    """An `If`: with the switch on `body`, off copies of other values (None: an empty tensor that nobody reads).

    Args:
        switch: the condition.
        body: nodes of the branch.
        made: per output of the `If` the value inside.
        without: per output the value outside that takes its place.
    """
    other: list[Any] = []
    for name, value in without.items():
        if value is None:
            other.append(constant_node(f"{name}.off", np.zeros(0, dtype=np.float32)))
        else:
            other.append(helper.make_node("Identity", [value], [f"{name}.off"]))
    branches = [
        helper.make_graph(nodes, "branch", [], [helper.make_empty_tensor_value_info(name) for name in names])
        for nodes, names in ((body, list(made.values())), (other, [f"{name}.off" for name in without]))
    ]
    return helper.make_node("If", [switch], list(made), then_branch=branches[0], else_branch=branches[1])


def ordered(nodes: Sequence[Any], known: Iterable[str]) -> list[Any]:
    """The nodes in an order in which every value is made before it is read, else as they were.

    Raises:
        Unfit: there is none.
    """
    done, left, found = {*known, ""}, list(nodes), []
    while left:
        waiting = []
        for node in left:
            if all(name in done for name in free(node)):
                found.append(node)
                done.update(node.output)
            else:
                waiting.append(node)
        if len(waiting) == len(left):
            raise Unfit(f"{left[0].op_type} that makes {left[0].output[0]!r} needs what is made after it")
        left = waiting
    return found


def switch_input(size: int) -> Any:
    """The graph input that chooses the sub-network."""
    return helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [size])
