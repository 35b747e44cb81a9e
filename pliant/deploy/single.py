"""A compiled network that decides as one ONNX file, for hosts without the runtime.

    end, slots = Loop(state, slots):  If(state < ...) -> block of a state, then If(decision) -> next state, its slots

The program's states are the leaves of a tree of `If`s on the state's number; what flows between them lies in slots, so
many of each dtype as the state with most parameters needs. What is returned lies in the first slots of its dtypes. The
outputs are the slots and `end_state`, the number of the state that returned; the metadata entry `pliant.returns` says
as JSON for each such state what it returns, with slot names for tensors (`read_single` puts it together). A choice by
an integer that no element has takes the last one, where the runtime raises an error.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from pliant.core import PliantError, write_atomic
from pliant_runtime import ArtifactError, Family, load
from pliant_runtime.gaps import gap
from pliant_runtime.grammar import State
from pliant_runtime.preprocess import arrays_of
from pliant_runtime.rows import numbers_in
from pliant_runtime.sessions import new_session
from pliant_runtime.states import Const, Edge, Kind, Ref, Step

RETURNS = "pliant.returns"
_TOLERANCE = 1e-4
_MOST_BYTES = 1 << 31
_ROWS = 8


def single_file(artifact: str | Path, out: str | Path, *, inputs: Sequence[Any] | None = None) -> Path:
    """Write a compiled network that decides as one ONNX file for one row, and compare it with the runtime.

    Lengths that are free in the artifact are free in the file.

    Args:
        artifact: its folder.
        out: the file.
        inputs: rows to compare on, each as the network takes it; by default random ones.

    Returns:
        `out`.

    Raises:
        PliantError: the artifact is damaged or does not decide, its weights are more than one file can hold, or
            onnxruntime answers otherwise than the runtime.
    """
    try:
        family = load(artifact)
    except ArtifactError as error:
        raise PliantError(error.problem, where=str(Path(artifact) / error.file), fix="compile it anew") from error
    if any(state.step is None for state in family.program.states):
        raise PliantError("the artifact does not decide: its graph is one file already", where=str(artifact))
    content = _Writer(family).model().SerializeToString()
    _compare(content, family, inputs)
    write_atomic(Path(out), content)
    return Path(out)


def read_single(outputs: Mapping[str, Any], returns: str) -> Any:
    """What the network returns, from the outputs of a single file and its metadata entry `pliant.returns`.

    Raises:
        RuntimeError: the network raises an error on this input.
    """
    shape = json.loads(returns)[str(int(outputs["end_state"]))]
    if "raise" in shape:
        raise RuntimeError(": ".join(shape["raise"]))
    return _read(shape, outputs)


def _read(shape: Any, outputs: Mapping[str, Any]) -> Any:
    kind, inner = next(iter(shape.items()))
    if kind == "t":
        return np.asarray(outputs[inner])
    if kind == "scalar":
        return outputs[inner].item()
    if kind == "dict":
        return {name: _read(item, outputs) for name, item in inner.items()}
    if kind in ("list", "tuple"):
        items = [_read(item, outputs) for item in inner]
        return items if kind == "list" else tuple(items)
    return float(inner) if kind == "odd" else inner


def _compare(content: bytes, family: Family, inputs: Sequence[Any] | None) -> None:
    try:
        session = new_session(content)
    except Exception as error:  # onnxruntime's errors share no base class
        line = str(error).strip().splitlines()[0]
        raise PliantError(f"onnxruntime refuses the file ({line})", fix="keep the artifact as it is") from error
    returns = session.get_modelmeta().custom_metadata_map[RETURNS]
    names = [item.name for item in session.get_outputs()]
    for row in _rows(family) if inputs is None else inputs:
        arrays = arrays_of(row, family.signature, preprocessed=True)
        feeds = dict(zip([value.name for value in family.signature.inputs], arrays, strict=True))
        found = read_single(dict(zip(names, session.run(names, feeds), strict=True)), returns)
        pairs = list(zip(numbers_in(family.run(row)), numbers_in(found), strict=False))
        same = len(numbers_in(found)) == len(numbers_in(family.run(row)))
        if not same or not all(gap(one, other)[1] <= _TOLERANCE for one, other in pairs):
            raise PliantError("the single file answers otherwise than the artifact", fix="keep the artifact as it is")


def _rows(family: Family) -> list[Any]:
    generator = np.random.default_rng(0)
    found = []
    for _ in range(_ROWS):
        arrays = []
        spans = family.signature.lengths.items()
        sizes = {"N": 1, **{name: int(generator.integers(least, most + 1)) for name, (least, most) in spans}}
        for value in family.signature.inputs:
            shape = [sizes[size] if isinstance(size, str) else size for size in value.shape]
            floats = value.dtype.startswith("float")
            drawn = generator.standard_normal(shape) if floats else generator.integers(0, 2, shape)
            arrays.append(np.asarray(drawn).astype(value.dtype))
        names = [value.name for value in family.signature.inputs]
        call = family.signature.call
        named = dict(zip(names, arrays, strict=True))
        found.append(arrays[0] if call == "tensor" else tuple(arrays) if call == "tuple" else named)
    return found


class _Writer:
    def __init__(self, family: Family) -> None:
        self.family, self.states = family, family.program.states
        self.weights: dict[Any, tuple[str, Any]] = {}
        self.opset, self.ir = 0, 0
        self.slots = self._slots()

    def _slots(self) -> list[tuple[str, str]]:
        """Name and dtype of every slot: enough of each dtype for the state with most, returned values included."""
        most: dict[str, int] = {}
        for state in self.states:
            step = _step(state)
            for kinds in ([kind.dtype for kind in step.params], [kind.dtype for kind in self._returned(step)[1]]):
                for dtype in set(kinds):
                    most[dtype] = max(most.get(dtype, 0), kinds.count(dtype))
        return [(f"{dtype}_{number}", dtype) for dtype in sorted(most) for number in range(most[dtype])]

    def _returned(self, step: Step) -> tuple[list[Ref], list[Kind]]:
        refs: list[Ref] = []

        def walk(shape: Any) -> None:
            if shape[0] in ("t", "scalar"):
                refs.append(shape[1])
            elif shape[0] in ("list", "tuple", "dict"):
                for item in shape[1].values() if shape[0] == "dict" else shape[1]:
                    walk(item)

        if step.next.kind == "return":
            walk(step.next.returns)
        return refs, [(step.made if ref.made else step.params)[ref.index] for ref in refs]

    def _assigned(self, kinds: Sequence[Kind]) -> list[str]:
        """The slots of values, the first free one of each dtype."""
        seen: dict[str, int] = {}
        names = []
        for kind in kinds:
            names.append(f"{kind.dtype}_{seen.get(kind.dtype, 0)}")
            seen[kind.dtype] = seen.get(kind.dtype, 0) + 1
        return names

    # -- the file ------------------------------------------------------------------------------------------------------

    def model(self) -> Any:
        """The whole model."""
        leaves = [self._leaf(number) for number in range(len(self.states))]
        body = self._body(leaves)
        given = self.family.signature.inputs
        first = dict(zip(self._assigned(_step(self.states[self._start]).params), [v.name for v in given], strict=True))
        nodes, initial = [], []
        for name, dtype in self.slots:
            if name not in first:
                nodes.append(_constant(f"empty/{name}", np.zeros(0, dtype)))
            initial.append(first.get(name, f"empty/{name}"))
        nodes += [_constant("begin", np.array(self._start, np.int64)), _constant("going", np.array(True)),
                  _constant("steps", np.array(self.family.program.steps, np.int64))]  # fmt: skip
        outputs = ["end_state", *(name for name, _ in self.slots)]
        nodes.append(helper.make_node("Loop", ["steps", "going", "begin", *initial], outputs, body=body))
        inputs = [_info(v.name, v.dtype, [1 if size == "N" else size for size in v.shape]) for v in given]
        results = [
            _info("end_state", "int64", []),
            *(_info(name, dtype, self._shape(name)) for name, dtype in self.slots),
        ]
        if sum(array.nbytes for _, array in self.weights.values()) >= _MOST_BYTES:
            raise PliantError("the weights are more than one ONNX file can hold", fix="keep the artifact as it is")
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.values()]
        graph = helper.make_graph(nodes, "program", inputs, results, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=self.ir)
        shapes = {str(number): self._told(_step(state)) for number, state in enumerate(self.states)}
        helper.set_model_props(model, {RETURNS: json.dumps(shapes)})
        return model

    def _shape(self, slot: str) -> tuple[int | str, ...] | None:
        """The shape in which all ways return a slot; None where they differ, or one leaves something else in it."""
        found: set[tuple[int | str, ...] | None] = set()
        for step in map(_step, self.states):
            if step.next.kind == "return":
                kinds = self._returned(step)[1]
                shapes = dict(zip(self._assigned(kinds), [kind.shape for kind in kinds], strict=True))
                found.add(shapes.get(slot))
        return found.pop() if len(found) == 1 else None

    @property
    def _start(self) -> int:
        return self.family.entries[0].start_state

    def _body(self, leaves: Sequence[list[Any]]) -> Any:
        """state, slots -> going on, state, slots."""
        results = ["going_out", "state_out", *(f"{name}/out" for name, _ in self.slots)]
        nodes: list[Any] = []
        self._tree(0, len(leaves), leaves, nodes, results)
        inputs = [_info("turn", "int64", []), _info("going_in", "bool", []), _info("state", "int64", [])]
        inputs += [_info(name, dtype) for name, dtype in self._inner]
        return helper.make_graph(nodes, "step", inputs, self._infos(results))

    @property
    def _inner(self) -> list[tuple[str, str]]:
        return [(f"in/{name}", dtype) for name, dtype in self.slots]

    def _infos(self, names: Sequence[str]) -> list[Any]:
        dtypes = ["bool", "int64", *(dtype for _, dtype in self.slots)]
        shapes: list[list[int] | None] = [[], [], *([None] * len(self.slots))]
        return [_info(name, dtype, shape) for name, dtype, shape in zip(names, dtypes, shapes, strict=True)]

    def _tree(self, low: int, high: int, leaves: Sequence[list[Any]], nodes: list[Any], results: list[str]) -> None:
        """Nodes that give the results of the state whose number is in [low, high)."""
        if high - low == 1:
            nodes += leaves[low]
            names = [f"s{low}/{name}" for name in self._results]
            nodes += [helper.make_node("Identity", [a], [b]) for a, b in zip(names, results, strict=True)]
            return
        middle = (low + high) // 2
        bound, below = f"bound_{low}_{high}", f"below_{low}_{high}"
        nodes += [_constant(bound, np.array(middle, np.int64)), helper.make_node("Less", ["state", bound], [below])]
        graphs = []
        for first, last in ((low, middle), (middle, high)):
            inner: list[Any] = []
            own = [f"{name}_{first}_{last}" for name in self._results]
            self._tree(first, last, leaves, inner, own)
            graphs.append(helper.make_graph(inner, f"states_{first}_{last}", [], self._infos(own)))
        nodes.append(helper.make_node("If", [below], results, then_branch=graphs[0], else_branch=graphs[1]))

    @property
    def _results(self) -> list[str]:
        return ["going", "state", *(name for name, _ in self.slots)]

    # -- one state -----------------------------------------------------------------------------------------------------

    def _leaf(self, number: int) -> list[Any]:
        """The nodes of a state; they give `s3/going`, `s3/state` and a value for every slot."""
        state, prefix = self.states[number], f"s{number}/"
        step = _step(state)
        slots = self._assigned(step.params)
        nodes = []
        for place, (slot, kind) in enumerate(zip(slots, step.params, strict=True)):
            shape = f"{prefix}shape_{place}"
            sizes = [0 if isinstance(size, str) else size for size in kind.shape]  # 0: as it is, for free lengths
            nodes += [_constant(shape, np.array(sizes, np.int64)),
                      helper.make_node("Reshape", [f"in/{slot}", shape], [f"{prefix}param_{place}"])]  # fmt: skip
        nodes += self._block(state, prefix)
        names = {True: [f"{prefix}{name}" for name in state.outputs],
                 False: [f"{prefix}param_{place}" for place in range(len(step.params))]}  # fmt: skip

        def value(ref: Ref) -> str:
            return names[ref.made][ref.index]

        results = [prefix + name for name in self._results]
        if step.next.ref is None:
            refs, kinds = self._returned(step)
            given = dict(zip(self._assigned(kinds), map(value, refs), strict=True))
            return nodes + self._ended(prefix, number, given, results, going=False)
        sides = [self._side(f"{prefix}e{side}/", edge, value) for side, edge in enumerate(step.next.edges)]
        decided = value(step.next.ref)
        if step.next.kind == "if":
            graphs = [helper.make_graph(inner, f"{prefix}{side}", [], self._infos(own))
                      for side, (inner, own) in enumerate(sides)]  # fmt: skip
            return [*nodes, helper.make_node("If", [decided], results, then_branch=graphs[1], else_branch=graphs[0])]
        return nodes + self._chosen(prefix, step.next.keys, sides, decided, results)

    def _chosen(self, prefix: str, keys: Sequence[int], sides: Sequence[Any], decided: str, results: list[str]
                ) -> list[Any]:  # fmt: skip
        """A choice as one `If` within the other; what is none of the keys takes the last one."""
        inner: list[Any] = sides[-1][0]
        own: list[str] = sides[-1][1]
        for turn in reversed(range(len(keys) - 1)):
            nodes, names = sides[turn]
            key, same = f"{prefix}key_{turn}", f"{prefix}same_{turn}"
            out = results if turn == 0 else [f"{prefix}c{turn}/{name}" for name in self._results]
            branches = [helper.make_graph(nodes, f"{prefix}key{turn}", [], self._infos(names)),
                        helper.make_graph(inner, f"{prefix}rest{turn}", [], self._infos(own))]  # fmt: skip
            inner = [_constant(key, np.array(keys[turn], np.int64)), helper.make_node("Equal", [decided, key], [same]),
                     helper.make_node("If", [same], out, then_branch=branches[0], else_branch=branches[1])]  # fmt: skip
            own = out
        if len(keys) == 1:
            inner = [*inner, *(helper.make_node("Identity", [a], [b]) for a, b in zip(own, results, strict=True))]
        return inner

    def _side(self, prefix: str, edge: Edge, value: Any) -> tuple[list[Any], list[str]]:
        """The nodes of one edge, and the names of their results."""
        nodes, given = [], {}
        kinds = _step(self.states[edge.state]).params
        for place, (arg, slot) in enumerate(zip(edge.args, self._assigned(kinds), strict=True)):
            if isinstance(arg, Const):
                given[slot] = f"{prefix}const_{place}"
                nodes.append(_constant(given[slot], np.array(arg.value, arg.dtype)))
            else:
                given[slot] = value(arg)
        own = [prefix + name for name in self._results]
        return nodes + self._ended(prefix, edge.state, given, own, going=True), own

    def _ended(
        self, prefix: str, state: int, given: Mapping[str, str], results: list[str], *, going: bool
    ) -> list[Any]:
        """Results from given slots; the others keep what is in them."""
        nodes = [_constant(f"{prefix}is_going", np.array(going)), _constant(f"{prefix}to", np.array(state, np.int64))]
        names = [f"{prefix}is_going", f"{prefix}to", *(given.get(name, f"in/{name}") for name, _ in self.slots)]
        return nodes + [helper.make_node("Identity", [a], [b]) for a, b in zip(names, results, strict=True)]

    def _block(self, state: State, prefix: str) -> list[Any]:
        if not state.graph:
            return []
        model = inline_local_functions(onnx.load_model_from_string(self.family._executor._graphs[state.graph]))
        opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
        if self.opset not in (0, opset):
            raise PliantError(f"blocks of the operator sets {self.opset} and {opset}", where=_step(state).at)
        self.opset, self.ir = opset, max(self.ir, model.ir_version)
        names = {name: f"{prefix}param_{place}" for place, name in state.inputs}
        for item in state.initializers:
            key = (item.tensor, item.ranges)
            self.weights.setdefault(key, (f"w/{len(self.weights)}", None))
            self.weights[key] = (self.weights[key][0], self.family._weights.cut(item))
            names[item.name] = self.weights[key][0]
        nodes = [_constant(item.name, numpy_helper.to_array(item)) for item in model.graph.initializer
                 if item.name not in names]  # fmt: skip
        return _renamed([*nodes, *model.graph.node], names, prefix)

    def _told(self, step: Step) -> Any:
        """What a state returns, with the names of slots."""
        if step.next.kind == "raise":
            return {"raise": list(step.next.error)}
        slots = iter(self._assigned(self._returned(step)[1]))

        def walk(shape: Any) -> Any:
            if shape[0] in ("t", "scalar"):
                return {shape[0]: next(slots)}
            if shape[0] == "dict":
                return {"dict": {name: walk(item) for name, item in shape[1].items()}}
            if shape[0] in ("list", "tuple"):
                return {shape[0]: [walk(item) for item in shape[1]]}
            odd = isinstance(shape[1], float) and not np.isfinite(shape[1])
            return {"odd": str(shape[1])} if odd else {"py": shape[1]}

        if step.next.kind != "return":  # the loop has ended before the network did
            return {"raise": ["RuntimeError", "too many steps"]}
        return walk(step.next.returns)


def _step(state: State) -> Step:
    assert state.step is not None  # was looked at first
    return state.step


def _constant(name: str, array: Any) -> Any:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array), name))


def _info(name: str, dtype: str, shape: Sequence[int | str] | None = None) -> Any:
    kind = TensorProto.BOOL if dtype == "bool" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


def _renamed(nodes: Sequence[Any], names: Mapping[str, str], prefix: str) -> list[Any]:
    """Copies of nodes, and of the graphs in them, under names of their own."""
    found = []
    for node in nodes:
        made = onnx.NodeProto.FromString(node.SerializeToString())
        made.name = ""  # must be unique otherwise, and nobody reads it
        made.input[:] = [names.get(name, f"{prefix}{name}") if name else "" for name in made.input]
        made.output[:] = [f"{prefix}{name}" if name else "" for name in made.output]
        for attribute in made.attribute:
            graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            for graph in graphs:
                inner = _renamed(graph.node, names, prefix)
                del graph.node[:]
                graph.node.extend(inner)
                for item in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
                    item.name = f"{prefix}{item.name}"
        found.append(made)
    return found
