"""Modes: one program from what a network does in training and in evaluation.

Both are walked side by side. Where they differ in an argument that switches an operator, the argument follows the live
flag. Where training adds calls (stochastic depth, noise), they are kept as calls of training alone, and `pliant.live`
picks what they make of a value or, in evaluation, the value itself.
"""

import hashlib
from dataclasses import replace
from typing import Any

from pliant.graph.ir import (
    TRAINING,
    Node,
    Program,
    Ref,
    arguments_of,
    is_mutable,
    refs,
    schema_names,
    substitute,
)

LIVE = ("train", "training", "use_input_stats")
"""Schema names of arguments that switch an operator between training and evaluation."""
_TRIES = 40
"""How many ways of pairing the calls are tried."""


def merge(training: Program, evaluation: Program) -> Program | None:
    """The training program that is also right in evaluation, or None where the two differ too much."""
    skip: set[str] = set()
    for _ in range(_TRIES):
        merged = _Merge(training, evaluation, skip)
        if merged.walk():
            return merged.program()
        doubtful = [name for name in merged.doubtful if name not in skip]
        if not doubtful:
            return None
        skip.add(doubtful[-1])
    return None


def live_flags(program: Program) -> Program:
    """An evaluation program whose dropout and normalisation follow the live flag."""
    nodes = []
    for node in program:
        if node.kind == "call":
            names = schema_names(node.target)
            args = tuple(
                Ref(TRAINING) if i < len(names) and names[i] in LIVE and a is False else a
                for i, a in enumerate(node.args)
            )
            kwargs = {k: Ref(TRAINING) if k in LIVE and v is False else v for k, v in node.kwargs.items()}
            node = replace(node, args=args, kwargs=kwargs)
        nodes.append(node)
    return replace(program, nodes=nodes)


def _counters(program: Program) -> dict[str, str]:
    """Calls that add one to a state, as batch normalisations count their batches: node to name of the state."""
    states = {node.name: node.target for node in program.states}
    return {
        node.name: states[node.args[0].name]
        for node in program
        if node.packet == "aten.add_" and node.args[1:] == (1,) and node.args[0].name in states
    }


class _Keys:
    """What each value of a program is, in words that mean the same in both modes' programs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.counters = _counters(program)
        self.of: dict[str, Any] = {TRAINING: TRAINING}

    def aside(self, node: Node) -> bool:
        """Enter a node that need not have a partner. False where it must."""
        if node.name in self.counters:
            self.of[node.name] = ("state", self.counters[node.name])
        elif node.kind == "state" and node.target in self.program.constants:
            tensor = self.program.constants[node.target]
            digest = hashlib.sha256(repr(tensor.cpu().tolist()).encode()).hexdigest()
            self.of[node.name] = ("constant", str(tensor.dtype), tuple(tensor.shape), digest)
        elif node.kind != "call":
            self.of[node.name] = (node.kind, node.target)
        elif node.packet == "aten.contiguous":
            self.of[node.name] = self.of[node.args[0].name]
        elif node.packet == "aten.sym_size":
            self.of[node.name] = ("size", self.of[node.args[0].name], node.args[1])
        else:
            return False
        return True


class _Merge:
    def __init__(self, training: Program, evaluation: Program, skip: set[str]) -> None:
        self.training, self.evaluation, self.skip = training, evaluation, skip
        self.doubtful: list[str] = []
        """Calls that were paired because a value of training alone was taken to stand for another."""
        self.ours, self.theirs = _Keys(training), _Keys(evaluation)
        self.partner: dict[str, Node] = {}
        self.extra: dict[str, set[str]] = {}
        """Calls of training alone, with the other values that they are made of."""
        self.stands_for: dict[str, Any] = {}
        """Extra value to the key of what evaluation has in its place."""

    def walk(self) -> bool:
        """Find each call's partner. False where there is none for a call of evaluation."""
        waiting: list[Node] = []
        for node in self.evaluation:
            if not self.theirs.aside(node):
                self.theirs.of[node.name] = len(waiting)
                waiting.append(node)
        place = 0
        for node in self.training:
            made_of = {ref.name for ref in refs((node.args, node.kwargs))}
            if not made_of & self.extra.keys() and self.ours.aside(node):
                continue
            known = len(self.stands_for)
            if place < len(waiting) and node.name not in self.skip and self._fits(node, waiting[place]):
                self.doubtful += [node.name] if len(self.stands_for) > known else []
                self.ours.of[node.name] = place
                self.partner[node.name] = waiting[place]
                place += 1
            elif self._harmless(node):
                self.extra[node.name] = {o for name in made_of for o in self.extra.get(name, {name})}
                self.ours.of[node.name] = ("extra", node.name)
            else:
                return False
        return place == len(waiting) and self._same(self.training.output, self.evaluation.output) and self._counts()

    def _harmless(self, node: Node) -> bool:
        """Whether a call of training alone changes nothing that evaluation's calls see, but state."""
        if not is_mutable(node.target):
            return True
        kinds = {other.name: other.kind for other in self.training}
        written = [ref.name for ref in refs(node.args[:1])]
        return all(name in self.extra or kinds[name] == "state" for name in written)

    def _fits(self, node: Node, other: Node) -> bool:
        """Whether two calls are the same but for live flags. Extra values among the operands are given their places."""
        if node.target != other.target:
            return False
        before = dict(self.stands_for)
        mine, its = _by_name(node), _by_name(other)
        if all(
            _switch(name, mine.get(name), its.get(name)) or self._same(mine.get(name), its.get(name))
            for name in mine.keys() | its.keys()
        ):
            return True
        self.stands_for = before
        return False

    def _same(self, one: Any, other: Any) -> bool:
        """Whether two operands are the same."""
        if isinstance(one, Ref) and isinstance(other, Ref):
            key = self.theirs.of[other.name]
            if one.name not in self.extra:
                return bool(self.ours.of[one.name] == key)
            if one.name not in self.stands_for and any(self.ours.of[name] == key for name in self.extra[one.name]):
                self.stands_for[one.name] = key
            return one.name in self.stands_for and self.stands_for[one.name] == key
        if isinstance(one, tuple | list) and isinstance(other, tuple | list):
            return len(one) == len(other) and all(self._same(a, b) for a, b in zip(one, other, strict=True))
        if isinstance(one, dict) and isinstance(other, dict):
            return one.keys() == other.keys() and all(self._same(one[key], other[key]) for key in one)
        return type(one) is type(other) and bool(one == other)

    def _counts(self) -> bool:
        """Whether training has all of evaluation's counters."""
        left = list(self.ours.counters.values())
        for name in self.theirs.counters.values():
            if name not in left:
                return False
            left.remove(name)
        return True

    def program(self) -> Program:
        """The merged program."""
        left = list(self.theirs.counters.values())
        names = {key: name for name, key in reversed(self.ours.of.items()) if name not in self.extra}
        picked = {name: f"{name}_live" for name in self.stands_for}

        def operand(ref: Ref) -> Ref:
            return Ref(picked.get(ref.name, ref.name))

        nodes: list[Node] = []
        for node in self.training:
            if node.name in self.extra:
                nodes.append(replace(node, live=True))
                if node.name in picked:
                    args = (Ref(TRAINING), Ref(node.name), Ref(names[self.stands_for[node.name]]))
                    nodes.append(Node(picked[node.name], "call", "pliant.live", args, {}, node.module, node.line))
                continue
            args, kwargs = substitute((node.args, node.kwargs), operand)
            node = replace(node, args=args, kwargs=kwargs)
            if node.name in self.ours.counters:
                if self.ours.counters[node.name] in left:
                    left.remove(self.ours.counters[node.name])
                else:
                    node.args = (node.args[0], Ref(TRAINING))
            elif node.name in self.partner:
                nodes += _switched(node, self.partner[node.name])
            nodes.append(node)
        return replace(self.training, nodes=nodes, output=substitute(self.training.output, operand))


def _by_name(node: Node) -> dict[str, Any]:
    """A call's arguments by schema name (by position where there is no schema), defaults filled in."""
    arguments = arguments_of(node.target)
    if not arguments:
        return {str(i): value for i, value in enumerate(node.args)} | node.kwargs
    filled = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return filled | dict(zip(schema_names(node.target), node.args, strict=False)) | node.kwargs


def _switch(name: str, value: Any, other: Any) -> bool:
    """Whether an argument is on in training and off in evaluation."""
    return (name in LIVE and value is True and other is False) or (
        isinstance(value, float) and value != 0.0 and isinstance(other, float) and other == 0.0
    )


def _switched(node: Node, other: Node) -> list[Node]:
    """Let the arguments in which a call differs from evaluation's follow the live flag; the calls that this needs."""
    extra = []
    mine, its = _by_name(node), _by_name(other)
    for name in mine:
        value = mine[name]
        if name in its and _switch(name, value, its[name]):
            if value is True:
                _set(node, name, Ref(TRAINING))
            else:
                extra.append(Node(f"{node.name}_p", "call", "operator.mul", (value, Ref(TRAINING))))
                _set(node, name, Ref(extra[-1].name))
    return extra


def _set(node: Node, name: str, value: Any) -> None:
    """Give an argument by its schema name, in the place where it stands."""
    names = schema_names(node.target)
    if name in names and names.index(name) < len(node.args):
        i = names.index(name)
        node.args = (*node.args[:i], value, *node.args[i + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}
