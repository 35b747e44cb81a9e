"""Runs programs that decide: one onnxruntime call per decision, one row after the other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.grammar import PROGRAM, Program, State
from pliant_runtime.states import Const, Edge, Ref, Step

Array = NDArray[Any]
Opener = Callable[[State], ort.InferenceSession]
ERRORS: dict[str, type[Exception]] = {
    "ValueError": ValueError, "IndexError": IndexError, "KeyError": KeyError, "TypeError": TypeError,
    "AssertionError": AssertionError, "ZeroDivisionError": ZeroDivisionError,
    "NotImplementedError": NotImplementedError,
}  # fmt: skip
"""What a program may raise as itself; anything else becomes a RuntimeError."""


MOST_STEPS = 1_000_000
"""What a program may allow one row; states of small blocks take that in seconds, so a forged loop comes to an end."""


_NUMBERS: dict[str, type] = {"bool": bool, "int": int, "float": float}


class Block:
    """A state made ready: its session and its plans as plain tuples, because a small block takes microseconds."""

    __slots__ = ("decide", "edges", "error", "inputs", "keys", "kind", "names", "returns", "run", "sizes")

    def __init__(self, state: State, step: Step, session: Any) -> None:
        self.inputs, self.names = state.inputs, list(state.outputs)
        self.run = None if session is None else runner(session)
        self.kind, self.keys = step.next.kind, {key: place for place, key in enumerate(step.next.keys)}
        ref = step.next.ref
        self.decide = None if ref is None else (ref.index + len(step.params) if ref.made else ref.index)
        self.edges = [(edge.state, self._plan(edge, len(step.params))) for edge in step.next.edges]
        self.returns, self.error = step.next.returns, step.next.error
        self.sizes = len(step.params)

    @staticmethod
    def _plan(edge: Edge, params: int) -> list[Any]:
        """Per argument an index into parameters and outputs, or a value that is always the same."""
        plan: list[Any] = []
        for arg in edge.args:
            if isinstance(arg, Const):
                plan.append(np.array(arg.value, dtype=arg.dtype))
            else:
                plan.append(arg.index + params if arg.made else arg.index)
        return plan


def runner(session: ort.InferenceSession) -> Callable[[list[str], dict[str, Array], Any], list[Array]]:
    """`session.run` without the checks of its wrapper, which cost as much as a small block; they were made before."""
    inner: Any = getattr(session, "_sess", session)
    found: Callable[[list[str], dict[str, Array], Any], list[Array]] = inner.run
    return found


class Stepper:
    """An interpreter of a program that decides.

    Args:
        program: a checked program.
        opened: gives the session of a state.

    Raises:
        ArtifactError: the program allows more steps than any may take.
    """

    def __init__(self, program: Program, opened: Callable[[int], ort.InferenceSession]) -> None:
        if program.steps > MOST_STEPS:
            raise ArtifactError(PROGRAM, f"steps must be at most {MOST_STEPS}, is {program.steps}")
        self._program, self._opened = program, opened
        self._blocks: dict[int, Block] = {}

    def block(self, number: int) -> Block:
        """A state, ready to run."""
        found = self._blocks.get(number)
        if found is None:
            state = self._program.states[number]
            if state.step is None:
                raise ArtifactError(PROGRAM, f"states[{number}] is no state of a program that decides")
            session = self._opened(number) if state.graph else None
            found = self._blocks[number] = Block(state, state.step, session)
        return found

    def run(
        self, start: int, arguments: list[Array], forced: Callable[[int, int], int] | None = None,
        trace: list[tuple[int, int]] | None = None,
    ) -> tuple[int, list[Any]]:  # fmt: skip
        """One row through the program.

        Args:
            start: the first state.
            arguments: its parameters.
            forced: from a state and the side it chose to the side that is taken, for tests of the wiring.
            trace: receives (state, side) of every decision.

        Returns:
            The state that returned, and its parameters and outputs.

        Raises:
            ArtifactError: more steps than the program allows.
            Exception: what the network raises on this input.
        """
        number = start
        values: list[Any] = list(arguments)
        for _ in range(self._program.steps):
            block = self._blocks.get(number) or self.block(number)
            if block.run is not None:
                feeds = {name: values[place] for place, name in block.inputs}
                values += block.run(block.names, feeds, None)
            if block.decide is None:
                if block.kind == "raise":
                    kind, message = block.error
                    raise ERRORS.get(kind, RuntimeError)(message if kind in ERRORS else f"{kind}: {message}")
                return number, values
            side = int(values[block.decide])
            if block.kind == "switch":
                if side not in block.keys:
                    raise IndexError(f"index {side} is none of {sorted(block.keys)}")
                side = block.keys[side]
            if forced is not None:
                side = forced(number, side)
            if trace is not None:
                trace.append((number, side))
            number, plan = block.edges[side]
            values = [values[item] if type(item) is int else item for item in plan]
        raise ArtifactError(PROGRAM, f"a row took more than {self._program.steps} steps")

    def result(self, number: int, values: list[Any]) -> Any:
        """What a state returns, from its parameters and outputs: arrays, numbers and constants in their structure."""
        block = self.block(number)
        return build(block.returns, lambda ref: values[ref.index + block.sizes if ref.made else ref.index])


def build(struct: Any, fetch: Callable[[Ref], Any]) -> Any:
    """A structure of the grammar with arrays for its refs."""
    kind, inner = struct[0], struct[1]
    if kind == "t":
        return np.asarray(fetch(inner))
    if kind == "scalar":
        return _NUMBERS[struct[2]](fetch(inner))
    if kind == "dict":
        return {name: build(item, fetch) for name, item in inner.items()}
    if kind in ("list", "tuple"):
        items = [build(item, fetch) for item in inner]
        return items if kind == "list" else tuple(items)
    return inner
