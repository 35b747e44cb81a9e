"""The plan: which value depends on which shells, and how every call of the program is run.

A *value* has, along one of its axes at most, a shell for every index: an entry of shell j depends on shells 1 to j of
everything before it, and on nothing else. Calls that keep that are run as they are; linear operators are made
block-triangular, and normalisations take prefix statistics. A linear operator that reads shells and gives out none (a
head) makes one value for each width. Whatever else reads across shells is refused.
"""

from collections.abc import Sequence
from dataclasses import replace

from pliant.core import PliantError
from pliant.elastic.onepass.places import Head, Mix, Place, Step, Value
from pliant.elastic.onepass.rules import rule_of
from pliant.elastic.onepass.shells import Shells
from pliant.graph.graph import Graph
from pliant.graph.ir import Node, Ref, is_mutable, refs


class Plan:
    """The steps of a network in one pass.

    Args:
        graph: the traced network.
        shells: of its groups.

    Raises:
        PliantError: something reads across shells; the message names operator, module and way out.
    """

    def __init__(self, graph: Graph, shells: Shells) -> None:
        self.graph, self.shells = graph, shells
        self.values: dict[str, Value] = {}
        self.items: dict[str, list[Value]] = {}
        self.steps: list[Step] = []
        split = [node for node in graph.program if node.target == "operator.getitem"]
        self._tuples = {node.args[0].name for node in split if isinstance(node.args[0], Ref)}
        for node in graph.program:
            if node.kind == "call":
                self._call(node)
            elif (node.name, 0) in graph.analysis.shapes:
                self._leaf(node)
        self._ends()

    # -- values -----------------------------------------------------------------------------------------------------

    def results(self, node: Node) -> list[Value]:
        """What a call gives out, with the shells that the graph's labels give it."""
        shapes, axes = self.graph.analysis.shapes, self.graph.analysis.axes
        found: list[Value] = []
        while (key := (node.name, len(found))) in shapes:
            vectors = {a: self.shells.vector(axes.get((*key, a))) for a in range(len(shapes[key]))}
            found.append(Value(shapes[key], {a: v for a, v in vectors.items() if v is not None}))
        return found

    def mixed(self, node: str, axis: int) -> bool:
        """Whether an axis of a value holds units and other indices too."""
        found = self.graph.analysis.axes.get((node, 0, axis))
        return found is not None and self.shells.mixed(found)

    def _place(self, node: Node) -> Place:
        return Place(node, self.values, self.results, self.mixed)

    def _leaf(self, node: Node) -> None:
        value = self.results(node)[0]
        state = node.kind == "state"
        origin = (node.target, tuple(range(len(value.shape)))) if state else None
        self.values[node.name] = replace(value, active=not state, origin=origin)

    def _call(self, node: Node) -> None:
        if node.target == "operator.getitem" and isinstance(node.args[0], Ref) and node.args[0].name in self.items:
            source = self.values.get(node.args[0].name)
            self.values[node.name] = self.items[node.args[0].name][node.args[1]]
            self.steps.append(Step(node, each=source is not None and source.each, shelled=True))
            return
        place = self._place(node)
        given = place.operands
        active = any(value.active for value in given)
        if node.target.startswith("module.") and given:
            place.refuse("runs as it is, so that nobody knows what reads what", "rewrite it so that it can be traced")
        if any(value.each for value in given):
            self._each(place)
        elif not any(value.axes for value in given):
            made = self.results(node)
            shelled = any(value.axes for value in made)
            self._add(place, Step(node, shelled=shelled), [replace(v, active=active) for v in made])
        else:
            if node.live or node.target == "pliant.live":
                place.refuse("belongs to training alone", "leave it out of the network")
            if is_mutable(node.target) and node.packet != "aten.batch_norm":
                place.refuse("writes over a value that has shells", "write the result to a new value")
            step, values = rule_of(place)(place)
            self._add(place, step, values)

    def _each(self, place: Place) -> None:
        """A call behind a head: run for each width."""
        node = place.node
        fix = "make the width in between elastic, or end the network there"
        if any(value.axes for value in place.operands):
            if any(value.pooled for value in place.operands):
                place.refuse_squeeze()
            place.refuse("brings shells together with a value that has read all of them (a rigid width between)", fix)
        if is_mutable(node.target) or node.packet == "aten.batch_norm":
            place.refuse("keeps statistics of a value of which every width has its own (a rigid width before it)", fix)
        pooled = any(value.pooled for value in place.operands)
        self._add(place, Step(node, each=True), [Value(v.shape, each=True, pooled=pooled) for v in self.results(node)])

    def _add(self, place: Place, step: Step, values: Sequence[Value]) -> None:
        self.steps.append(step)
        name = step.node.name
        if name in self._tuples:
            self.items[name] = list(values)
        if values or step.each:
            self.values[name] = values[0] if values else Value((), each=True)
        for value in values:
            if value.active and len(value.axes) > 1:
                place.refuse("gives out a value with two elastic axes", "freeze one of the two widths")

    # -- checks of the whole ----------------------------------------------------------------------------------------

    def _ends(self) -> None:
        nodes = {node.name: node for node in self.graph.program}
        leaves = [ref.name for ref in refs(self.graph.program.output)]
        for name in leaves:
            if name in self.values and self.values[name].axes:
                self._place(nodes[name]).refuse("is an output with shells", "end the network in a layer of fixed size")
        if not any(name in self.values and self.values[name].each for name in leaves):
            raise PliantError(
                "no output depends on a width that bends, so that there is nothing to have in several widths",
                where=", ".join(nodes[name].place for name in leaves if name in nodes) or "the output",
                fix="look at pliant.elastic(net, example).report()",
            )
        self._check_heads()
        self._check_mixes()

    def _check_heads(self) -> None:
        """Weights of heads are used by heads alone, and always on the same shells."""
        same: dict[int, set[str]] = {}
        for node in self.graph.program.states:
            same.setdefault(id(self.graph.states[node.target]), set()).add(node.name)
        read: dict[str, list[str]] = {}
        for node in self.graph.program:
            for ref in refs((node.args, node.kwargs)):
                read.setdefault(ref.name, []).append(node.name)
        heads = {step.node.name: step for step in self.steps if isinstance(step, Head)}
        for head in heads.values():
            for state in (head.weight, head.bias):
                names = () if state is None else same[id(self.graph.states[state])]
                others = [heads.get(reader) for name in names for reader in read.get(name, ())]
                if any(o is None or o.weight != head.weight or o.into.tobytes() != head.into.tobytes() for o in others):
                    self._place(head.node).refuse(
                        f"the head's {state} is tied to another layer (tied embeddings): every width reads all of it",
                        "build the network with weights of its own for the head (tied=False)",
                    )

    def _check_mixes(self) -> None:
        """A weight that is used several times is cut alike."""
        seen: dict[int, tuple[object, ...]] = {}
        for step in self.steps:
            origin = self.values[step.weight].origin if isinstance(step, Mix) else None
            if isinstance(step, Mix) and origin is not None:
                turned = tuple(origin[1][axis] for axis in step.layout)
                key = (turned, step.into.tobytes(), step.out_of.tobytes())
                if seen.setdefault(id(self.graph.states[origin[0]]), key) != key:
                    self._place(step.node).refuse(
                        f"{origin[0]} is tied to a layer with other shells", "give the layers weights of their own"
                    )
