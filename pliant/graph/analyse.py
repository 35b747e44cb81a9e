"""Analysis: run a program once on its example, values and labels side by side, and read off units and groups."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pliant.core import PliantError
from pliant.graph import matrices as matrices  # the imports enter their rules
from pliant.graph import signals as signals
from pliant.graph.blocks import Block, find_blocks
from pliant.graph.experts import GROWS, follow_domains
from pliant.graph.indexing import refuse
from pliant.graph.inner import Inner, wanted
from pliant.graph.ir import TRAINING, Node, Program, Ref, callable_of, is_mutable, refs, substitute
from pliant.graph.labels import Field, IntArray, Labels, Traced, along
from pliant.graph.rules import SLICES, Call, Macs, Result, find_rule, merge

AxisKey = tuple[str, int, int]
"""(node, index of the result, axis)."""


@dataclass(frozen=True)
class Rigid:
    """Something that cannot bend, and why."""

    operator: str
    module: str
    line: str
    reason: str


@dataclass
class Axis:
    """An elastic axis: for each index the group it belongs to (-1: none, always kept) and its rank in that group."""

    group: IntArray
    rank: IntArray

    def kept(self, counts: IntArray) -> NDArray[np.bool_]:
        """Which indices stay when each group keeps its first `counts[g]` units."""
        return (self.group < 0) | (self.rank < np.append(counts, 0)[self.group])

    def size(self, counts: IntArray) -> int:
        """How many indices stay."""
        return int(self.kept(counts).sum())


@dataclass(frozen=True)
class Operand:
    """What a `Reading` reads: the call's reference number `place`, a value's name, and the axis along which it is read.

    `origin` is the (state, axis) whose own labels the axis carries: where shape operators alone lie between, the state
    is read.
    """

    place: int
    name: str
    axis: int
    origin: tuple[str, int] | None


@dataclass(frozen=True)
class Reading:
    """A call that makes one of the entries along an axis that its operands share; `how` as in `Mix`."""

    node: str
    how: str
    operands: tuple[Operand, ...]


@dataclass
class Analysis:
    """What the labels say.

    Args:
        axes: elastic axes of every value.
        shapes: the example's shape of every tensor value.
        units: units in each group.
        macs: multiply-accumulates: (node, constant, elastic axes).
        rigid: calls without a rule, and what else stays as it is.
        floors: group to the fewest units that the network can do with, where that is more than one (`topk`).
        readings: calls that sum, average or otherwise combine the units of elastic axes.
        batch: rows of the example.
        inner: which calls bend by inner units.
        blocks: modules that were asked for, with the values that enter and leave.
        skippable: paths of all modules that could be.
    """

    axes: dict[AxisKey, Axis] = field(default_factory=dict)
    shapes: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    units: list[int] = field(default_factory=list)
    macs: list[tuple[str, float, list[Axis]]] = field(default_factory=list)
    rigid: list[Rigid] = field(default_factory=list)
    floors: dict[int, int] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    prefixes: dict[tuple[str, str], Axis] = field(default_factory=dict)
    batch: int = 1
    inner: Inner | None = None
    blocks: list[tuple[Block, str, str]] = field(default_factory=list)
    skippable: list[str] = field(default_factory=list)


def analyse(program: Program, states: Mapping[str, Tensor], inputs: list[Any], trainable: set[str],
            frozen: set[str] = frozenset(), asked: Sequence[str] = ()) -> Analysis:  # type: ignore[assignment]  # fmt: skip
    """The units of a program.

    Args:
        program: what `capture` gives.
        states: parameters, buffers and constants by name; tied names share one tensor.
        inputs: one value for each input node.
        trainable: names that are parameters; a group must reach at least one of them.
        frozen: names of state whose axes must stay whole.
        asked: knob-name patterns of what bends only where it is asked for.
    """
    run = _Run(program, states, inputs, frozen)
    run.inner, run.blocks, run.asked = Inner(program, asked), find_blocks(program, trainable), tuple(asked)
    run.go()
    return run.result(trainable)


def multiply_accumulates(program: Program, states: Mapping[str, Tensor], inputs: list[Any]) -> list[tuple[str, float]]:
    """For each entry of `Analysis.macs` its node and whole count, as a program has them that may run at other sizes."""
    run = _Run(program, states, inputs, frozenset())  # type: ignore[arg-type]
    run.go()
    return [(macs.node, macs.constant * math.prod(vector.numel() for vector in macs.vectors)) for macs in run.macs]


class _Run:
    def __init__(self, program: Program, states: Mapping[str, Tensor], inputs: list[Any], frozen: set[str]) -> None:
        self.program, self.states, self.inputs, self.frozen = program, states, list(inputs), frozen
        self.labels = Labels()
        self.multiples = {node.name for node in program if node.target == "operator.mul"}
        self.env: dict[str, Traced] = {TRAINING: Traced(False)}
        self.macs: list[Macs] = []
        self.rigid: list[Rigid] = []
        self.slices: list[tuple[str, str, Tensor, int, int]] = []
        self.of_state: dict[int, Traced] = {}
        self.owners: list[tuple[int, str, int]] = []
        self.readings: list[Reading] = []
        self.inner, self.blocks, self.asked = Inner(program, ()), list[Block](), tuple[str, ...]()
        self.skipped: list[tuple[Block, str, str]] = []

    def go(self) -> None:
        asked = [block for block in self.blocks if wanted("block", [block.module], self.asked)]
        with torch.no_grad():
            for node in self.program:
                if node.kind == "input":
                    self.env[node.name] = Traced(self.inputs.pop(0))
                elif node.kind == "state":
                    self.env[node.name] = self._state(node)
                else:
                    self.env[node.name] = self._bent(node)
                    self._skip(block for block in asked if block.nodes[-1] == node.name)
        self.program.nodes[:] = self.program.without_dead().nodes  # in place: empty parts of what was joined are gone
        self.labels.place = ""
        for ref in refs(self.program.output):
            self._fix(self.env[ref.name])

    def _fix(self, traced: Traced) -> None:
        self.labels.fix(traced.fields)
        self.labels.release(traced)
        for item in traced.items or ():
            self._fix(item)

    def _state(self, node: Node) -> Traced:
        """Every axis of a parameter or buffer starts with labels of its own; tied names share them."""
        tensor = self.states[node.target]
        if id(tensor) not in self.of_state:
            own = tensor.detach().clone()  # statistics that a forward updates must not change the model
            fields = tuple(
                Field(along(self.labels.fresh(size), axis, tensor.dim()))
                for axis, size in enumerate(tensor.shape)
                if size > 1
            )
            self.of_state[id(tensor)] = Traced(own, fields)
            self.owners += [(int(f.labels.flatten()[0]), node.target, f.axes[0]) for f in fields]
            if node.target in self.frozen:
                self.labels.fix(fields)
        return self.of_state[id(tensor)]

    def _bent(self, node: Node) -> Traced:
        """A call by outer or, where it was asked for, by inner units."""
        if node.packet in ("aten.cat", "aten.concat") and isinstance(node.args[0], list):
            full = [ref for ref in node.args[0] if self.env[ref.name].value.numel()]
            node.args = (full or node.args[0], *node.args[1:])  # what is empty (partial rotary, of all) has no units
        self.labels.inner, before = self.inner.calls.get(node.name, ""), self.labels.losses
        self.labels.place = node.name
        traced = self._call(node)
        if self.labels.inner and self.labels.losses > before:
            self.inner.lost.append(node)
        self.labels.inner = ""
        return traced

    def _like(self, name: str) -> object:
        value = self.env[name].value if name in self.env else None
        return (value.shape, value.dtype) if isinstance(value, Tensor) and value.is_floating_point() else None

    def _skip(self, blocks: Iterable[Block]) -> None:
        """Tie what enters modules that may be left out to what leaves them."""
        for block in blocks:
            ends = block.ends(self._like)
            if isinstance(ends, tuple):
                both = [self.env[name] for name in ends]
                call = Call(Node(block.module, "call", ""), [], {}, both[1].value, self.labels)
                both[1].fields = merge(call, [(t.fields, t.shape) for t in both], both[1].value.dim())
                self.skipped.append((block, *ends))
            elif f"block:{block.module}" in self.asked:
                self.rigid.append(Rigid("", block.module, "", f"block: {ends}"))

    def _call(self, node: Node) -> Traced:
        args, kwargs = substitute((node.args, node.kwargs), lambda ref: self.env[ref.name])
        plain_args, plain_kwargs = substitute((node.args, node.kwargs), lambda ref: self.env[ref.name].value)
        try:
            out = self._compute(node, plain_args, plain_kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise PliantError(f"failed on the example: {str(error).splitlines()[0]}", where=node.place) from error
        if node.target == "operator.getitem" and args[0].items is not None:
            found: Traced = args[0].items[args[1]]
            return found
        call = Call(
            node, [_lift(a) for a in args], {k: _lift(v) for k, v in kwargs.items()}, out, self.labels, self.macs,
            multiples=self.multiples,
        )  # fmt: skip
        result = self._apply(call)
        if isinstance(out, tuple | list):
            pairs = enumerate(zip(out, result, strict=True))
            items = tuple(Traced(value, fields, domain=call.domains.get(i)) for i, (value, fields) in pairs)  # type: ignore[arg-type]
            return Traced(out, items=items)
        return Traced(out, result if isinstance(out, Tensor) else (), domain=call.domains.get(0))  # type: ignore[arg-type]

    def _compute(self, node: Node, args: Any, kwargs: Any) -> Any:
        """The real value. An operator without a rule keeps all its sizes, so that torch's own count is its cost."""
        operator = callable_of(self.program, node)
        if find_rule(node) is not None:
            return operator(*args, **kwargs)
        with FlopCounterMode(display=False) as counter:
            out = operator(*args, **kwargs)
        if counter.get_total_flops() and not node.live:
            self.macs.append(Macs(node.name, counter.get_total_flops() / 2, []))
        return out

    def _apply(self, call: Call) -> Result:
        node, many = call.node, isinstance(call.out, tuple | list)
        if node.target.startswith("module."):
            opaque = self.program.opaque[node.target.partition(".")[2]]
            reason = f"runs as it is, because it cannot be traced: {opaque.reason}"
            self.rigid.append(Rigid(opaque.name, node.module, node.line, reason))
            return refuse(call)
        follow_domains(call)
        if not many and not isinstance(call.out, Tensor):
            return ()
        rule = find_rule(node)
        if rule not in GROWS and call.tensors and not any(traced.fields or traced.domain for traced in call.tensors):
            return [() for _ in call.out] if many else ()
        in_place = is_mutable(node.target) and not node.packet.startswith(("aten.batch_norm", "aten.instance_norm"))
        if rule is None and not call.tensors:
            return [() for _ in call.out] if many else ()
        if rule is None or (in_place and self._through_view(node)):
            reason = "no rule for this operator" if rule is None else "writes in place through a view"
            self.rigid.append(Rigid(node.target, node.module, node.line, reason))
            return refuse(call)
        self._note_slice(call)
        try:
            fields = rule(call)
        except (RuntimeError, TypeError, ValueError, IndexError, StopIteration) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.rigid.append(Rigid(node.target, node.module, node.line, f"its rule does not fit this call: {problem}"))
            return refuse(call)
        self._note_readings(call)
        if many and isinstance(fields, tuple):
            fields = [fields for _ in call.out]
        return fields

    def _note_readings(self, call: Call) -> None:
        """Keep what the rule says about entries that become one, with names in place of values."""
        found = enumerate(refs((call.node.args, call.node.kwargs)))
        names = [(place, ref.name) for place, ref in found if isinstance(self.env[ref.name].value, Tensor)]
        where: dict[int, tuple[int, str]] = {}
        for traced, place in zip(call.tensors, names, strict=True):
            where.setdefault(id(traced), place)
        for mix in call.mixes:
            known = [(*where[id(t)], axis, self._origin(t, axis)) for t, axis in mix.operands if id(t) in where]
            self.readings.append(Reading(mix.node, mix.how, tuple(Operand(*operand) for operand in known)))

    def _origin(self, traced: Traced, axis: int) -> tuple[str, int] | None:
        """The state's axis whose fresh labels a value carries along an axis."""
        labels = next((f.labels for f in traced.fields if axis in f.axes), None)
        index = -1 if labels is None else bisect_right(self.owners, int(labels.min()), key=itemgetter(0)) - 1
        if labels is None or index < 0:
            return None
        first, name, own = self.owners[index]
        return (name, own) if int(labels.max()) < first + self.states[name].shape[own] else None

    def _through_view(self, node: Node) -> bool:
        written = node.args[0]
        return isinstance(written, Ref) and all(n.kind != "state" for n in self.program if n.name == written.name)

    def _note_slice(self, call: Call) -> None:
        """A slice's bounds shrink with the units before them."""
        node = call.node
        if node.packet not in SLICES or (node.packet == "aten.slice" and call.arg("step", 1) != 1):
            return  # a slice in steps begins within the first block of entries and ends behind the last
        source = call.tensors[0]
        axis = call.arg("dim", 0) % len(source.shape)
        n = source.shape[axis]
        for name in ("start", "end", "index"):
            bound = call.arg(name)
            if isinstance(bound, int) and not isinstance(call.raw(name), Ref):
                place = min(max(bound + n if bound < 0 else bound, 0), n)
                for f in source.fields:
                    if axis in f.axes:
                        self.slices.append((node.name, name, f.labels, axis, place))

    # -- reading off ------------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[tuple[str, int, Traced]]:
        for name, traced in self.env.items():
            if traced.items is not None:
                for i, item in enumerate(traced.items):
                    yield name, i, item
            elif isinstance(traced.value, Tensor):
                yield name, 0, traced

    def _dense_roots(self) -> IntArray:
        """Roots, after every field that still spans several axes was collapsed; repeats until nothing changes."""
        joint = [(name, f) for name, _, traced in self._all() for f in traced.fields if len(f.axes) > 1]
        while True:
            roots = self.labels.roots()
            table = torch.from_numpy(roots)
            left = []
            for name, f in joint:
                rooted = table[f.labels]
                spans = [a for a in f.axes if not bool((rooted == rooted.narrow(a, 0, 1)).all())]
                if len(spans) > 1:
                    # where no consumer ever chose an axis (a channel shuffle), the largest one is kept
                    loose = int(torch.unique(rooted).numel()) == rooted.numel()
                    widest = max(spans, key=rooted.shape.__getitem__)
                    self.labels.inner = self.inner.calls.get(name, "")
                    self.labels.collapse(f, widest if loose else self.labels.prefer(spans))
                    left.append((name, f))
            if not left and not self.labels.broken_orders(roots, self._held()):
                return roots
            joint = left

    def _held(self) -> IntArray:
        """Labels of parameters and buffers."""
        held = [f.labels.reshape(-1).numpy() for traced in self.of_state.values() for f in traced.fields]
        return np.concatenate(held) if held else np.zeros(0, dtype=np.int64)

    def result(self, trainable: set[str]) -> Analysis:
        roots = self._dense_roots()
        occurrences: list[tuple[AxisKey, IntArray]] = []
        analysis = Analysis(rigid=self.rigid, batch=self._batch(), inner=self.inner, blocks=self.skipped)
        analysis.skippable = [block.module for block in self.blocks if isinstance(block.ends(self._like), tuple)]
        for name, index, traced in self._all():
            analysis.shapes[name, index] = traced.shape
            for f in traced.fields:
                for axis, vector in self._vectors(f, roots):
                    occurrences.append(((name, index, axis), vector))
        bounds = []
        for node, argument, labels, axis, place in self.slices:
            lines = dict(self._vectors(Field(labels), roots))
            if axis in lines:
                bounds.append(((node, argument), lines[axis][:place]))
        group_of, rank_of = self._groups(roots, occurrences, [vector for _, vector in bounds], trainable, analysis)

        def axis_of(vector: IntArray) -> Axis:
            return Axis(group_of[vector], rank_of[vector])

        for key, vector in occurrences:
            elastic = axis_of(vector)
            if (elastic.group >= 0).any():
                analysis.axes[key] = elastic
        self._name_whole(trainable, analysis.axes)
        for (node, argument), vector in bounds:
            analysis.prefixes[node, argument] = axis_of(vector)
        for labels, least in self.labels.floors:
            self._note_floor(axis_of(roots[labels.numpy()]), least, analysis)
        for reading in self.readings:
            if any((operand.name, 0, operand.axis) in analysis.axes for operand in reading.operands):
                analysis.readings.append(reading)
        for macs in self.macs:
            axes = [axis_of(roots[vector.reshape(-1).numpy()]) for vector in macs.vectors]
            constant = macs.constant * float(np.prod([len(a.group) for a in axes if (a.group < 0).all()]))
            analysis.macs.append((macs.node, constant, [a for a in axes if (a.group >= 0).any()]))
        return analysis

    @staticmethod
    def _note_floor(axis: Axis, least: int, analysis: Analysis) -> None:
        """At least so many indices must stay along an axis, whatever its other groups keep."""
        least -= int((axis.group < 0).sum())
        for group, count in zip(*np.unique(axis.group[axis.group >= 0], return_counts=True), strict=True):
            needed = -(-least * analysis.units[group] // int(count))
            analysis.floors[int(group)] = max(needed, 1, analysis.floors.get(int(group), 1))

    def _batch(self) -> int:
        tensors = [t.value for n in self.program.inputs if isinstance((t := self.env[n.name]).value, Tensor)]
        return int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1

    @staticmethod
    def _vectors(f: Field, roots: IntArray) -> Iterator[tuple[int, IntArray]]:
        rooted = roots[f.labels.numpy()]
        for axis in f.axes:
            line = np.moveaxis(rooted, axis, 0).reshape(rooted.shape[axis], -1)[:, 0]
            if (line != line[0]).any():
                yield axis, line

    def _name_whole(self, trainable: set[str], axes: Mapping[AxisKey, Axis]) -> None:
        """Add the calls on whose account parameters bend along no axis; outputs and what is frozen need no reason."""
        nodes = {node.name: node for node in self.program}
        told = {(rigid.operator, rigid.line) for rigid in self.rigid}
        bending = {node.target for node in self.program.states if any(key[0] == node.name for key in axes)}
        roots, places = self.labels.blame()
        held: dict[str, list[str]] = {}
        for first, name, axis in self.owners:
            if name in trainable and name not in bending and name not in self.frozen:
                found = {places.get(root, "") for root in roots[first : first + self.states[name].shape[axis]].tolist()}
                for place in (found - {""}) if len(found) == 1 else ():
                    held.setdefault(place, []).append(f"{name}[{axis}]")
        for place, names in held.items():
            node = nodes[place]
            if (node.target, node.line) not in told and not node.target.startswith("module."):
                reason = f"keeps the size of {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
                self.rigid.append(Rigid(node.target, node.module, node.line, reason))

    def _groups(self, roots: IntArray, occurrences: list[tuple[AxisKey, IntArray]], bounds: list[IntArray],
                trainable: set[str], analysis: Analysis) -> tuple[IntArray, IntArray]:  # fmt: skip
        """Units with the same occurrences form a group. Returns group (-1: none) and rank of every root."""
        random = np.random.default_rng(0).integers(1, 2**63, size=(len(occurrences) + len(bounds), 2), dtype=np.uint64)
        signature = np.zeros((len(roots), 2), dtype=np.uint64)
        trained = np.zeros(len(roots), dtype=bool)
        parameters = {node.name for node in self.program.states if node.target in trainable}
        vectors_ = [vector for _, vector in occurrences] + bounds
        for mark, vector in zip(random, vectors_, strict=True):
            np.add.at(signature, vector, mark)
        for (name, _, _), vector in occurrences:
            if name in parameters:
                trained[vector] = True
        used = np.unique(np.concatenate([*vectors_, np.zeros(1, dtype=np.int64)]))
        used = used[(used != 0) & trained[used]]
        group_of, rank_of = np.full(len(roots), -1), np.zeros(len(roots), dtype=np.int64)
        if not len(used):
            return group_of, rank_of
        _, inverse = np.unique(signature[used], axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        first: dict[int, int] = {}
        for root, kind in zip(used.tolist(), inverse.tolist(), strict=True):
            first.setdefault(kind, root)
        order = sorted(first, key=lambda kind: first[kind])
        for kind in order:
            members = used[inverse == kind]
            if len(members) > 1:
                group_of[members] = len(analysis.units)
                rank_of[members] = np.arange(len(members))
                analysis.units.append(len(members))
        return group_of, rank_of


def _lift(value: Any) -> Any:
    """Operands for a rule: tensors stay `Traced`, numbers that came from nodes become plain."""
    if isinstance(value, Traced):
        return value if isinstance(value.value, Tensor) else value.value
    if isinstance(value, tuple | list):
        return type(value)(_lift(item) for item in value)
    return value
