"""Runs the states of a program: one onnxruntime session per state, made when it is first needed."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.grammar import Program, State
from pliant_runtime.sessions import new_session
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
        self._sessions: dict[int, tuple[ort.InferenceSession, list[Any]]] = {}
        self._lock = threading.Lock()

    def run(self, start: int, arguments: list[Array]) -> Any:
        """What the program returns when it starts in a state with these arguments.

        A `return` ends the program, and it is the only way a state of version 1 ends.
        """
        state = self._program.states[start]
        session = self.session(start)
        feeds = {name: arguments[parameter] for parameter, name in state.inputs}
        outputs = session.run(list(state.outputs), feeds)
        return build(state.returns, outputs)

    def session(self, number: int) -> ort.InferenceSession:
        """The session of a state."""
        with self._lock:
            if number not in self._sessions:
                self._sessions[number] = self._open(self._program.states[number])
            return self._sessions[number][0]

    def _open(self, state: State) -> tuple[ort.InferenceSession, list[Any]]:
        # An OrtValue does not copy its array: both are kept for as long as the session lives.
        arrays = [self._weights.cut(item) for item in state.initializers]
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays]
        names = [item.name for item in state.initializers]
        threads = min(self._threads, state.max_threads or self._threads)
        try:
            session = new_session(self._graphs[state.graph], threads=threads, weights=dict(zip(names, values)))
        except Exception as error:  # onnxruntime's errors share no base class
            raise ArtifactError(state.graph, f"cannot be loaded ({str(error).strip().splitlines()[0]})") from error
        self._compare(state, session)
        return session, [*arrays, *values]

    def _compare(self, state: State, session: ort.InferenceSession) -> None:
        """The graph takes and gives what the program says."""
        inputs = {item.name: item.type for item in session.get_inputs()}
        outputs = [item.name for item in session.get_outputs()]
        named = {name: self._program.signature.inputs[parameter] for parameter, name in state.inputs}
        if set(inputs) != set(named):
            raise ArtifactError(state.graph, f"takes {sorted(inputs)}, the program gives {sorted(named)}")
        for name, value in named.items():
            if inputs[name] != f"tensor({_ORT_NAMES.get(value.dtype, value.dtype)})":
                raise ArtifactError(state.graph, f"input {name!r} is {inputs[name]}, the program says {value.dtype}")
        missing = set(state.outputs) - set(outputs)
        if missing:
            raise ArtifactError(state.graph, f"has no output {sorted(missing)[0]!r}")


_ORT_NAMES = {"float32": "float", "float64": "double"}


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
