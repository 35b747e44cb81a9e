"""Many rows through a program that decides: rows wait at states, and each block runs once for all that wait there.

States are numbered in the order in which they were found, breadth first; the lowest one goes first, so rows that took
different sides meet again. Where nearly all rows of a block go the same way they are not gathered: those that left are
computed along and ignored.

What comes back for N rows: where all ways of the program return the same structure, arrays [N, ...] in it (the outputs
of the rows one behind the other along axis 0; numbers that differ from way to way as an array [N]); otherwise a list
with what the network returns for each row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pliant_runtime.errors import ArtifactError
from pliant_runtime.grammar import PROGRAM, Program, State
from pliant_runtime.states import Const, Edge, Kind, Step, leaves
from pliant_runtime.steps import ERRORS, Stepper, build

Array = NDArray[Any]
Group = tuple[Array, list[Array], bool]
"""Which rows wait (-1 for those that left and are computed along), their values, and whether any has left."""
STAY = 0.8
"""From this share of rows on the same side, none is gathered."""


class Batch:
    """Runs many rows.

    Args:
        program: a checked program.
        stepper: runs single rows.
        opened: gives the session of a state's graph for many rows.
    """

    def __init__(self, program: Program, stepper: Stepper, opened: Callable[[int], ort.InferenceSession]) -> None:
        self._program, self._stepper, self._opened = program, stepper, opened
        self._merged: Any = None

    def run(self, start: int, arguments: list[Array]) -> Any:
        """What the program returns for N rows, see above.

        Raises:
            ValueError: no rows.
            ArtifactError: more steps than the program allows.
            Exception: what the network raises on one of the rows.
        """
        count = len(arguments[0])
        if not count:
            raise ValueError("there are no rows")
        ended: list[tuple[Group, int]] = []
        first = [array.reshape(count, 1, *array.shape[1:]) for array in arguments]
        waiting: dict[int, list[Group]] = {start: [(np.arange(count), first, False)]}
        for _ in range(self._program.steps):
            if not waiting:
                return self._assembled(count, ended)
            number = min(waiting)
            rows, values, some_left = _together(waiting.pop(number))
            state, step = self._at(number)
            values = values + self._computed(number, state, step, values, len(rows))
            self._go(number, step, (rows, values, some_left), waiting, ended)
        raise ArtifactError(PROGRAM, f"rows took more than {self._program.steps} steps")

    def _at(self, number: int) -> tuple[State, Step]:
        state = self._program.states[number]
        if state.step is None:
            raise ArtifactError(PROGRAM, f"states[{number}] is no state of a program that decides")
        return state, state.step

    def _computed(self, number: int, state: State, step: Step, values: list[Array], count: int) -> list[Array]:
        if not state.graph:
            return []
        if step.rows.graph and count > 1:
            feeds = {name: np.ascontiguousarray(values[place]) for place, name in state.inputs}
            found: list[Array] = self._opened(number).run(list(state.outputs), feeds)
            return [_rows_of(array, kind, count) for array, kind in zip(found, step.made, strict=True)]
        block = self._stepper.block(number)
        session: Any = block.run
        made: list[list[Array]] = []
        for row in range(count):
            feeds = {name: np.ascontiguousarray(values[place][row]).reshape(values[place].shape[1:])
                     for place, name in state.inputs}  # fmt: skip
            made.append([np.asarray(output) for output in session(block.names, feeds, None)])
        return [np.stack(column) for column in zip(*made, strict=True)]

    def _go(self, number: int, step: Step, group: Group, waiting: dict[int, list[Group]],
            ended: list[tuple[Group, int]]) -> None:  # fmt: skip
        rows, values, some_left = group
        following = step.next
        if following.kind == "raise":
            kind, message = following.error
            raise ERRORS.get(kind, RuntimeError)(message if kind in ERRORS else f"{kind}: {message}")
        if following.ref is None:
            ended.append((group, number))
            return
        ref = following.ref
        side = values[ref.index + len(step.params) if ref.made else ref.index].reshape(len(rows))
        keys = following.keys if following.kind == "switch" else (0, 1)
        codes, todo = side.astype(np.int64), len(rows)
        if some_left:
            codes[rows < 0] = min(keys) - 1  # the way of none
            todo = int(np.count_nonzero(rows >= 0))
        for key, edge in zip(keys, following.edges, strict=True):
            here = codes == key
            taken = int(np.count_nonzero(here))
            if not taken:
                continue
            todo -= taken
            given = [_argument(edge, place, values, step, len(rows)) for place in range(len(edge.args))]
            if taken == len(rows):
                sent = (rows, given, False)
            elif taken >= STAY * len(rows):
                sent = (np.where(here, rows, -1), given, True)
            else:
                chosen = here.nonzero()[0]
                sent = (rows[chosen], [array[chosen] for array in given], False)
            waiting.setdefault(edge.state, []).append(sent)
        if todo:
            raise IndexError(f"an index is none of {sorted(keys)}")

    # -- what comes back -----------------------------------------------------------------------------------------------

    def _assembled(self, count: int, ended: list[tuple[Group, int]]) -> Any:
        if self._merged is None:
            returned = [state.step for state in self._program.states if state.step and state.step.next.kind == "return"]
            self._merged = merged([(step.next.returns, step) for step in returned])
        if self._merged is False:
            return self._listed(count, ended)
        columns: dict[int, Array] = {}
        for (rows, values, some_left), number in ended:
            step = self._at(number)[1]
            kept = rows >= 0 if some_left else slice(None)
            for place, leaf in enumerate(leaves(step.next.returns)):
                found = _leaf(leaf, step, values, len(rows))
                if place not in columns:
                    columns[place] = np.empty((count, *found.shape[1:]), dtype=found.dtype)
                columns[place][rows[kept]] = found[kept]
        return _shaped(self._merged, columns, iter(range(len(columns))))

    def _listed(self, count: int, ended: list[tuple[Group, int]]) -> list[Any]:
        results: list[Any] = [None] * count
        for (rows, values, _), number in ended:
            step = self._at(number)[1]
            for place in np.flatnonzero(rows >= 0):
                results[rows[place]] = _one(step, values, int(place))
        return results


def numbers_in(result: Any) -> list[Array]:
    """The arrays and numbers in what a network returns for a row, depth first."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, tuple | list):
        return [value for item in result for value in numbers_in(item)]
    return [np.asarray(result)] if isinstance(result, np.ndarray | bool | int | float) else []


def _one(step: Step, values: list[Array], place: int) -> Any:
    """What a step returns for one of its rows."""
    shift = len(step.params)
    return build(step.next.returns, lambda ref: values[ref.index + shift if ref.made else ref.index][place])


def _together(groups: list[Group]) -> Group:
    if len(groups) == 1:
        return groups[0]
    kept = [(rows[rows >= 0], [array[rows >= 0] for array in values]) if some_left else (rows, values)
            for rows, values, some_left in groups]  # fmt: skip
    columns = zip(*(values for _, values in kept), strict=True)
    return np.concatenate([rows for rows, _ in kept]), [np.concatenate(column) for column in columns], False


def _rows_of(array: Array, kind: Kind, count: int) -> Array:
    if array.shape[:1] == (count,) and kind.fits(array.shape[1:]):
        return array
    if kind.fits(array.shape):  # the same for every row
        return np.broadcast_to(array, (count, *array.shape))
    raise ArtifactError(PROGRAM, f"a graph for many rows gives {list(array.shape)}, not {[count, *kind.shape]}")


def _argument(edge: Edge, place: int, values: list[Array], step: Step, count: int) -> Array:
    arg = edge.args[place]
    if isinstance(arg, Const):
        return np.full(count, arg.value, dtype=arg.dtype)
    return values[arg.index + len(step.params) if arg.made else arg.index]


def _leaf(leaf: Any, step: Step, values: list[Array], count: int) -> Array:
    """What one place of the structure holds for every row, the rows first."""
    if leaf[0] == "py":
        return np.full(count, leaf[1])
    found: Array = values[leaf[1].index + len(step.params) if leaf[1].made else leaf[1].index]
    return found.reshape(count, *found.shape[2:]) if found.ndim > 1 and found.shape[1] == 1 else found


def merged(structs: list[tuple[Any, Step]]) -> Any:
    """The structure that all ways of a program share, with the constants that differ as arrays; False if there is none.
    """  # fmt: skip
    if not structs:
        return False
    kinds = {struct[0] for struct, _ in structs}
    first = structs[0][0]
    if kinds <= {"t", "scalar", "py"}:
        if kinds == {"py"} and len({(type(struct[1]), struct[1]) for struct, _ in structs}) == 1:
            return first
        found = {_column(struct, step) for struct, step in structs}
        return ("column",) if len(found) == 1 and None not in found else False
    if len(kinds) > 1:
        return False
    if first[0] == "dict":
        if len({tuple(struct[1]) for struct, _ in structs}) > 1:
            return False
        parts = {name: merged([(struct[1][name], step) for struct, step in structs]) for name in first[1]}
        return False if any(part is False for part in parts.values()) else ("dict", parts)
    if len({len(struct[1]) for struct, _ in structs}) > 1:
        return False
    items = [merged([(struct[1][n], step) for struct, step in structs]) for n in range(len(first[1]))]
    return False if any(item is False for item in items) else (first[0], tuple(items))


def _column(struct: Any, step: Step) -> Any:
    """Dtype and shape of a leaf for one row; None for what makes no column."""
    if struct[0] == "py":
        kinds = {bool: "bool", int: "int64", float: "float64"}
        return (kinds[type(struct[1])], ()) if type(struct[1]) in kinds else None
    ref = struct[1]
    kind = (step.made if ref.made else step.params)[ref.index]
    return kind.dtype, kind.shape


def _shaped(struct: Any, columns: dict[int, Array], places: Any) -> Any:
    if struct[0] in ("column", "py"):
        place = next(places)
        return columns[place] if struct[0] == "column" else struct[1]
    if struct[0] == "dict":
        return {name: _shaped(item, columns, places) for name, item in struct[1].items()}
    items = [_shaped(item, columns, places) for item in struct[1]]
    return items if struct[0] == "list" else tuple(items)
