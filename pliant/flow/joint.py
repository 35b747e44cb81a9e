"""All branches of a network that decides as one graph, so that an axis bends only where every branch agrees.

Each state's block is traced to operators. The blocks are joined where values flow along an edge: a parameter that
several edges give is `where(taken, one, other)`, which ties the axes of both; what an edge gives back to an earlier
state is tied to that state's parameter in the same way. What is decided on, and what is returned, is an output, so that
nothing that a decision counts on can go. The joint graph is never run as the network: it is what the tied axes are
read from. `Joint.parts` holds the blocks, which are run one after the other as the decisions fall.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pliant.core import PliantError, map_tensors, seeded, tensors_of
from pliant.core._torch_private import switches_gradients
from pliant.core.forms import Form, Slot
from pliant.flow.explore import Arg, Const, Edge, Flow, In, Leaf, Out, Scalar, State
from pliant.flow.needs import needed, returned, samples_of
from pliant.graph.capture import shared_memory
from pliant.graph.convert import Converter
from pliant.graph.graph import Cost, Graph
from pliant.graph.ir import Node, Program, Ref, refs, substitute
from pliant.graph.labels import IntArray
from pliant.graph.modes import live_flags
from pliant.graph.spans import ALWAYS

_TAKEN = "edge_taken"


@dataclass(frozen=True)
class Stage:
    """A state as it is run.

    Args:
        params: names of its parameters in the joint program.
        outputs: names of its block's outputs.
        kinds: dtype and shape of the parameters, for one row.
        value: what is decided on; None where nothing is.
        keys: integers that choose an edge; None for an `if` (true, false).
        edges: the sides of the decision.
        returns: the structure returned, with `Leaf`s and `Scalar`s.
        raised: kind and message of an error.
        at: where in the code it begins.
    """

    params: tuple[str, ...]
    outputs: tuple[str, ...]
    kinds: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    value: Arg | None
    keys: tuple[int, ...] | None
    edges: tuple[Edge, ...]
    returns: Any
    raised: tuple[str, str] | None
    at: str

    def same(self, other: "Stage") -> bool:
        """Whether another stage decides, goes on and returns alike."""
        mine, its = ((s.value, s.keys, s.edges, s.returns, s.raised, len(s.outputs)) for s in (self, other))
        return mine == its


def row_count(example: Any) -> int | None:
    """How many rows the tensors of an example have in common; None where they have none in common."""
    counts = {len(tensor) if tensor.dim() else -1 for tensor in tensors_of(example)}
    return counts.pop() if len(counts) == 1 and -1 not in counts else None


def one_row(example: Any) -> Any:
    """The first row of an example; the example itself where its tensors have no rows in common."""
    return example if row_count(example) is None else map_tensors(lambda tensor: tensor[:1], example)


class Joint(Graph):
    """The graph of a network that decides. Depth does not bend: what is skipped, the network says itself.

    Args:
        model: in evaluation mode. Its tensors are shared with the graph, not copied; it is not changed.
        example: of the first row alone the program is made.
        asked: as of `Graph`.

    Attributes:
        stages: the states.
        parts: one graph per state, of its block alone; names, groups and patches are those of the whole.

    Raises:
        PliantError: the forward cannot become a program; the message names the line.
    """

    stages: tuple[Stage, ...]
    parts: tuple[Graph, ...]

    def __init__(self, model: nn.Module, example: Any, *, asked: Sequence[str] = ()) -> None:
        row = one_row(example)
        form, _ = Form.of(model.forward, row)
        blocks, stages = taken_apart(model, row)
        program = _joined(blocks, stages, form)
        own = dict(model.named_parameters(remove_duplicate=False))
        buffers = dict(model.named_buffers(remove_duplicate=False))
        states = {node.target: _tensor(node.target, own, buffers, program) for node in program.states}
        self._settle(program, states, set(own) & set(states), row, stages, asked=asked)

    def _settle(self, program: Program, states: dict[str, Tensor], parameters: set[str], example: Any,
                stages: Sequence[Stage], *, asked: Sequence[str]) -> None:  # fmt: skip
        super().__init__(program, states, parameters, example, [], frozen=shared_memory(program, states), asked=asked)
        self.spans, self.span_names = [], []
        self.guards = dict.fromkeys(self.guards, ALWAYS)
        self.stages = tuple(stages)
        self.parts = tuple(self._part(number) for number in range(len(stages)))

    @classmethod
    def stored(cls, program: Program, states: dict[str, Tensor], parameters: set[str], example: Any,
               stages: Sequence[Stage], *, asked: Sequence[str] = ()) -> "Joint":  # fmt: skip
        """The graph of a program that was stored, without the network's code."""
        made = cls.__new__(cls)
        made._settle(program, states, parameters, example, stages, asked=asked)
        return made

    def _part(self, number: int) -> Graph:
        stage, prefix = self.stages[number], f"s{number}_"
        mine = [node for node in self.program if node.name.startswith(prefix) and node.name not in stage.params]
        used = {ref.name for node in mine for ref in refs((node.args, node.kwargs))} | set(stage.outputs)
        inputs = [Node(name, "input", name) for name in stage.params]
        states = [node for node in self.program if node.kind == "state" and node.name in used]
        there = {node.name for node in [*inputs, *states, *mine]}
        if not used - {"training"} <= there:
            raise PliantError(f"a block needs {sorted(used - there)}, which is not its own", where=stage.at)
        part = copy.copy(self)
        output = tuple(Ref(name) for name in stage.outputs)
        part.program = Program([*inputs, *states, *mine], output, self.program.constants)
        part.guards = {node.name: ALWAYS for node in part.program}
        return part

    def cost(self, counts: IntArray, spans: tuple[bool, ...]) -> Cost:
        """As of a graph; the FLOPs are those of the dearest way, on which every state is visited once at most."""
        whole = super().cost(counts, spans)
        each = [0.0] * len(self.stages)
        pairs = zip(self.analysis.macs, self.scales_at(counts), strict=True)
        for (node, constant, axes), scale in pairs:
            sizes = 1.0
            for axis in axes:
                sizes *= axis.size(counts)
            each[_state_of(node)] += scale * constant * sizes
        for number in reversed(range(len(self.stages))):
            later = [each[edge.target] for edge in self.stages[number].edges if edge.target > number]
            each[number] += max(later, default=0.0)
        return replace(whole, flops=round(2 * each[0] / self.analysis.batch))


def _state_of(node: str) -> int:
    return int(node[1:].partition("_")[0])


def _tensor(name: str, own: Mapping[str, Tensor], buffers: Mapping[str, Tensor], program: Program) -> Tensor:
    for held in (program.constants, own, buffers):
        if name in held:
            return held[name]
    raise PliantError(f"no tensor {name!r} in the network")


# -- blocks ------------------------------------------------------------------------------------------------------------


def taken_apart(model: nn.Module, example: Any) -> tuple[list[Program], list[Stage]]:
    """The program of every state's block, without what nothing needs, and how the states follow each other.

    Args:
        model: in evaluation mode.
        example: inputs for one row.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused layer is one operator, of which nothing is known
    try:
        flow = Flow(model, example)
        with flow.still():
            blocks = [_traced(flow, number) for number in range(len(flow.states))]
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    live, made = needed(flow.states, [_depends(block) for block in blocks])
    stages = []
    for number, (state, block) in enumerate(zip(flow.states, blocks, strict=True)):
        inputs = block.inputs
        block.output = tuple(block.output[out] for out in made[number])
        dropped = {inputs[place].name for place in range(len(inputs))} - {inputs[place].name for place in live[number]}
        blocks[number] = _without(block, dropped)
        stages.append(_stage(number, state, blocks[number], live, made))
    return blocks, stages


def _traced(flow: Flow, number: int) -> Program:
    """A block's operators; parameters keep their names, constants get names of their own."""
    state = flow.states[number]
    given = samples_of(state.params, seeded(0, "flow", "trace"))
    with torch.enable_grad():
        made = make_fx(lambda *values: flow.outputs(state, list(values)), pre_dispatch=True)(*given)
    # What the code says about gradients plays no part: the family is trained through every block.
    for node in [node for node in made.graph.nodes if switches_gradients(node.target)]:
        made.graph.erase_node(node)
    names = {id(tensor): name for name, tensor in [*flow.net.named_buffers(), *flow.net.named_parameters()]}
    holder = SimpleNamespace(net=flow.net, graph=made.graph)
    for node in made.graph.nodes:
        if node.op == "get_attr":
            tensor = getattr(made, str(node.target))
            name = names.get(id(tensor))
            if name is None:
                name = f"constant_{number}_{str(node.target).strip('_')}"
                setattr(holder, name, tensor.detach().clone())
                node.target = name
            else:
                node.target = f"net.{name}"
    form = Form.plain([f"p{place}" for place in range(len(state.params))])
    heard = SimpleNamespace(output=tuple(Slot(place) for place in range(len(state.outputs))))
    source: Any = SimpleNamespace(net=flow.net, form=form, heard=heard)
    return _named(live_flags(Converter(source, holder).program()), number, state)  # type: ignore[arg-type]


def _named(program: Program, number: int, state: State) -> Program:
    """A block's nodes under names that no other block has, with the place in the code and the module that they are of.
    """  # fmt: skip
    targets = {node.name: node.target for node in program.states}
    names = {node.name: node.name if node.kind == "state" else f"s{number}_{node.name}" for node in program}
    names |= {name: f"w_{target}" for name, target in targets.items()}

    def renamed(ref: Ref) -> Ref:
        return Ref(names.get(ref.name, ref.name))

    nodes = []
    for node in program:
        args, kwargs = substitute((node.args, node.kwargs), renamed)
        owners = [targets[ref.name].rpartition(".")[0] for ref in refs(node.args) if ref.name in targets]
        line, module = f"{state.at}: {state.place.source}", node.module or (owners[0] if owners else "")
        nodes.append(replace(node, name=names[node.name], args=args, kwargs=kwargs, line=line, module=module))
    return Program(nodes, substitute(program.output, renamed), program.constants, program.form)


def _depends(program: Program) -> list[set[int]]:
    places = {node.name: place for place, node in enumerate(program.inputs)}
    needs: dict[str, set[int]] = {}
    for node in program:
        found = {places[node.name]} if node.name in places else set[int]()
        needs[node.name] = found.union(*(needs.get(ref.name, ()) for ref in refs((node.args, node.kwargs))))
    return [needs[ref.name] for ref in program.output]


def _without(program: Program, dropped: set[str]) -> Program:
    alive = program.without_dead()
    kept = [node for node in alive if node.name not in dropped]
    used = {node.target for node in kept if node.kind == "state"}
    constants = {name: tensor for name, tensor in program.constants.items() if name in used}
    return Program(kept, program.output, constants)


def _stage(number: int, state: State, block: Program, live: list[list[int]], made: list[list[int]]) -> Stage:
    params = {old: new for new, old in enumerate(live[number])}
    outs = {old: new for new, old in enumerate(made[number])}

    def moved(arg: Arg) -> Arg:
        if isinstance(arg, Const):
            return arg
        return In(params[arg.index]) if isinstance(arg, In) else Out(outs[arg.index])

    def shaped(shape: Any) -> Any:
        if isinstance(shape, Leaf):
            return Leaf(moved(shape.arg))
        if isinstance(shape, Scalar):
            return Scalar(moved(shape.arg), shape.kind)
        if not isinstance(shape, Mapping):
            return shape
        kind, inner = next(iter(shape.items()))
        if kind == "dict":
            return {kind: {name: shaped(item) for name, item in inner.items()}}
        return {kind: [shaped(item) for item in inner]} if kind in ("list", "tuple") else dict(shape)

    edges = [Edge(edge.target, tuple(moved(edge.args[place]) for place in live[edge.target])) for edge in state.edges]
    return Stage(
        params=tuple(node.name for node in block.inputs),
        outputs=tuple(ref.name for ref in block.output),
        kinds=tuple(state.params[old] for old in live[number]),
        value=None if state.value is None else moved(state.value),
        keys=None if state.keys is None else tuple(state.keys),
        edges=tuple(edges),
        returns=shaped(state.returns),
        raised=state.raised,
        at=state.at,
    )


# -- the joint program -------------------------------------------------------------------------------------------------


def _joined(blocks: Sequence[Program], stages: Sequence[Stage], form: Form) -> Program:
    """One program of all blocks, each run once on what the first edge into it gives."""
    constants: dict[str, Tensor] = {_TAKEN: torch.tensor(True)}
    states: dict[str, Node] = {}
    nodes: list[Node] = []
    outputs: list[Ref] = []
    for block in blocks:
        constants |= block.constants
        states |= {node.name: node for node in block.states}
    states[f"w_{_TAKEN}"] = Node(f"w_{_TAKEN}", "state", _TAKEN)
    inputs = dict(zip(stages[0].params, form.names, strict=True))
    for number, (block, stage) in enumerate(zip(blocks, stages, strict=True)):
        for place, name in enumerate(stage.params):
            if number == 0:
                nodes.append(Node(name, "input", inputs[name]))
            else:
                nodes += _met(name, list(_givers(number, place, stages, constants, states)), stage.at)
        nodes += [node for node in block if node.kind == "call"]
        outputs += [_ref(arg, stage) for arg in [*([stage.value] if stage.value else []), *returned(stage.returns)]]
    for number, stage in enumerate(stages):
        for place, name in enumerate(stage.params):
            for turn, giver in enumerate(_givers(number, place, stages, constants, states, back=True)):
                nodes += _tied(f"again_{name}_{turn}", name, giver, flat=not stage.kinds[place][1])
                outputs.append(Ref(nodes[-1].name))
    return Program([*states.values(), *nodes], tuple(outputs), constants, form)


def _ref(arg: Arg, stage: Stage) -> Ref:
    assert not isinstance(arg, Const)  # nobody decides on, or returns, a number that is known beforehand
    return Ref((stage.params if isinstance(arg, In) else stage.outputs)[arg.index])


def _givers(number: int, place: int, stages: Sequence[Stage], constants: dict[str, Tensor], states: dict[str, Node],
            *, back: bool = False) -> Iterator[Ref]:  # fmt: skip
    """What the edges into a state give for one of its parameters: those from earlier states, or all others."""
    met: set[str] = set()
    for source, stage in enumerate(stages):
        for edge in stage.edges if (source >= number) == back else ():
            if edge.target != number:
                continue
            arg = edge.args[place]
            if isinstance(arg, Const):
                kind = stages[number].kinds[place][0]
                target = f"constant_{str(kind).removeprefix('torch.')}_{len(constants)}"
                constants[target] = torch.tensor(arg.value, dtype=kind)
                states[f"w_{target}"] = Node(f"w_{target}", "state", target)
                yield Ref(f"w_{target}")
                continue
            ref = _ref(arg, stage)
            if ref.name not in met:
                met.add(ref.name)
                yield ref


def _met(name: str, givers: list[Ref], at: str) -> list[Node]:
    """The nodes of a parameter at which ways meet; the last one carries its name."""
    if not givers:
        raise PliantError("no way leads to a state", where=at)
    if len(givers) == 1:
        return [Node(name, "call", "aten.clone.default", (givers[0],))]
    nodes, value = [], givers[0]
    for turn, other in enumerate(givers[1:], start=2):
        own = name if turn == len(givers) else f"met_{name}_{turn}"
        node = Node(own, "call", "aten.where.self", (Ref(f"w_{_TAKEN}"), value, other))
        nodes.append(node)
        value = Ref(node.name)
    return nodes


def _tied(name: str, param: str, giver: Ref, *, flat: bool) -> list[Node]:
    """The nodes that tie what comes back to a parameter; the last one is a single number."""
    met = Node(name, "call", "aten.where.self", (Ref(f"w_{_TAKEN}"), Ref(param), giver))
    return [met] if flat else [met, Node(f"{name}_sum", "call", "aten.sum.default", (Ref(name),))]
