"""Runs the states of a program: one onnxruntime session per state, made when it is first needed."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.grammar import Initializer, Program, State
from pliant_runtime.rows import Batch, numbers_in
from pliant_runtime.sessions import new_session
from pliant_runtime.states import Kind, Step
from pliant_runtime.steps import Stepper
from pliant_runtime.weights import Weights

Array = NDArray[Any]


class Executor:
    """An interpreter of a program's states. Safe to use from several threads.

    Args:
        program: a checked program.
        graphs: bytes of the graph files, by name.
        weights: the stored tensors.
        threads: threads per session; a state's `max_threads` goes first.
    """

    def __init__(self, program: Program, graphs: Mapping[str, bytes], weights: Weights, threads: int) -> None:
        self._program, self._graphs, self._weights, self._threads = program, graphs, weights, threads
        self._sessions: dict[tuple[int, bool], tuple[ort.InferenceSession, list[Any]]] = {}
        self._values: dict[tuple[str, Any], tuple[Any, Any]] = {}
        self._switch = None if program.layout is None else program.layout.switch
        self._switches: dict[int, Array] = {}
        self._lock = threading.RLock()
        self.stepper = Stepper(program, self.session)
        self.batch = Batch(program, self.stepper, lambda number: self.session(number, rows=True))

    def run(self, start: int, arguments: list[Array]) -> Any:
        """What the program returns when it starts in a state with these arguments.

        A program that decides runs every row on its own; what comes back for one row is what the network returns, for
        several see `pliant_runtime.rows`.
        """
        state = self._program.states[start]
        if state.step is not None:
            fixed = self._program.signature.inputs[0].shape[:1] != ("N",)
            if fixed or len(arguments[0]) == 1:
                return self.stepper.result(*self.stepper.run(start, arguments))
            return self.batch.run(start, arguments)
        return build(state.returns, self._computed(start, state, arguments))

    def trace(
        self, start: int, arguments: list[Array], forced: Callable[[int, int], int] | None
    ) -> tuple[Any, list[tuple[int, int]]]:
        """One row, and its decisions; arguments as in `Stepper.run`."""
        way: list[tuple[int, int]] = []
        found = self.stepper.run(start, arguments, forced, way)
        return self.stepper.result(*found), way

    def outputs(self, start: int, arguments: list[Array]) -> list[Array]:
        """The output arrays of a program, depth first."""
        state = self._program.states[start]
        if state.step is not None:
            return arrays_in(self.run(start, arguments))
        return self._computed(start, state, arguments)

    def answers(self, start: int, arguments: list[Array]) -> list[Array]:
        """What stored rows are checked by: the output arrays; of a program that decides those of each row by itself."""
        if self._program.states[start].step is None:
            return self.outputs(start, arguments)
        fixed = self._program.signature.inputs[0].shape[:1] != ("N",)
        rows = [arguments] if fixed else [[a[n : n + 1] for a in arguments] for n in range(len(arguments[0]))]
        return [value for row in rows for value in numbers_in(self.run(start, row))]

    def _computed(self, start: int, state: State, arguments: list[Array]) -> list[Array]:
        feeds = {name: arguments[parameter] for parameter, name in state.inputs}
        switch = self._switch
        if switch is not None and state.on is not None:
            if start not in self._switches:
                self._switches[start] = np.isin(np.arange(switch.size), state.on)
            feeds[switch.name] = self._switches[start]
        return list(self.session(start).run(list(state.outputs), feeds))

    def prepare(self, start: int) -> None:
        """Open the sessions of a program."""
        state = self._program.states[start]
        if state.step is None:
            self.session(start)
            return
        for number, each in enumerate(self._program.states):
            if each.step is not None:
                self.stepper.block(number)

    def session(self, number: int, *, rows: bool = False) -> ort.InferenceSession:
        """The session of a state; with `rows`, that of its graph for many rows."""
        with self._lock:
            like = self._program.states[number].like
            key = (number if like is None else like, rows)
            if key not in self._sessions:
                self._sessions[key] = self._open(self._program.states[number], rows)
                self._weights.release()
            return self._sessions[key][0]

    def _shared(self, item: Initializer) -> tuple[Any, Any]:
        """Array and OrtValue of a weight, one for all states that use it."""
        key = (item.tensor, item.ranges)
        if key not in self._values:
            # An OrtValue does not copy its array: both are kept for as long as the sessions live.
            array = self._weights.cut(item)
            self._values[key] = array, ort.OrtValue.ortvalue_from_numpy(array)
        return self._values[key]

    def _open(self, state: State, rows: bool) -> tuple[ort.InferenceSession, list[Any]]:
        step = state.step
        graph, initializers, most = state.graph, state.initializers, state.max_threads
        if rows and step is not None:
            graph, initializers, most = step.rows.graph, step.rows.initializers, step.rows.max_threads
        kept = [self._shared(item) for item in initializers]
        weights = {item.name: value for item, (_, value) in zip(initializers, kept, strict=True)}
        threads = min(self._threads, most or self._threads)
        try:
            session = new_session(self._graphs[graph], threads=threads, weights=weights)
        except Exception as error:  # onnxruntime's errors share no base class
            raise ArtifactError(graph, f"cannot be loaded ({str(error).strip().splitlines()[0]})") from error
        self._compare(state, session, graph)
        if step is not None and not rows:
            _compare_step(state, step, session)
        return session, kept

    def _compare(self, state: State, session: ort.InferenceSession, graph: str) -> None:
        """The graph takes and gives what the program says."""
        inputs = {item.name: item.type for item in session.get_inputs()}
        outputs = [item.name for item in session.get_outputs()]
        values = state.step.params if state.step is not None else self._program.signature.inputs
        named = {name: values[parameter].dtype for parameter, name in state.inputs}
        if self._switch is not None and state.on is not None:
            named[self._switch.name] = "bool"
            shape = next((item.shape for item in session.get_inputs() if item.name == self._switch.name), None)
            if shape != [self._switch.size] or len(named) != len(state.inputs) + 1:
                problem = f"input {self._switch.name!r} has the shape {shape}, the program says [{self._switch.size}]"
                raise ArtifactError(graph, problem)
        if set(inputs) != set(named):
            raise ArtifactError(graph, f"takes {sorted(inputs)}, the program gives {sorted(named)}")
        for name, dtype in named.items():
            if inputs[name] != ort_type(dtype):
                raise ArtifactError(graph, f"input {name!r} is {inputs[name]}, the program says {dtype}")
        missing = set(state.outputs) - set(outputs)
        if missing:
            raise ArtifactError(graph, f"has no output {sorted(missing)[0]!r}")


_ORT_NAMES = {"float32": "float", "float64": "double"}


def ort_type(dtype: str) -> str:
    """A dtype as onnxruntime writes it."""
    return f"tensor({_ORT_NAMES.get(dtype, dtype)})"


def _compare_step(state: State, step: Step, session: ort.InferenceSession) -> None:
    """Dtypes and shapes inside the graph of a state are those of the program; a graph could lie about them."""
    made = {item.name: item for item in session.get_outputs()}
    taken = {item.name: item for item in session.get_inputs()}
    pairs = [(made[name], kind) for name, kind in zip(state.outputs, step.made, strict=True)]
    pairs += [(taken[name], step.params[parameter]) for parameter, name in state.inputs]
    for item, kind in pairs:
        if Kind(item.type, tuple(item.shape)) != Kind(ort_type(kind.dtype), kind.shape):
            found = f"{item.type}{item.shape}, the program says {kind.dtype}{list(kind.shape)}"
            raise ArtifactError(state.graph, f"{item.name!r} is {found}")


def build(structure: Mapping[str, Any], outputs: list[Any]) -> Any:
    """Outputs put together as a `struct` of the grammar says."""
    kind, inner = next(iter(structure.items()))
    if kind == "t":
        return np.asarray(outputs[inner])
    if kind == "dict":
        return {name: build(item, outputs) for name, item in inner.items()}
    if kind in ("list", "tuple"):
        items = [build(item, outputs) for item in inner]
        return items if kind == "list" else tuple(items)
    return inner


def arrays_in(output: Any) -> list[Array]:
    """The arrays in tuples, lists and dicts, depth first."""
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [array for item in output for array in arrays_in(item)]
    return [output] if isinstance(output, np.ndarray) else []
