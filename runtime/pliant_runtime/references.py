"""References inside a program: files, states, tensors and ranges that must exist and fit."""

from collections.abc import Mapping

from pliant_runtime.grammar import PROGRAM, WEIGHTS, Check, Initializer, Program, State, Stored
from pliant_runtime.jsonish import Node
from pliant_runtime.layout import check_layout
from pliant_runtime.states import Step, check_steps


def check_references(program: Program, file: str = PROGRAM) -> None:
    """Every reference leads somewhere, and fits what it leads to.

    Raises:
        ArtifactError: one does not.
    """
    files, tensors, signature = program.files, program.tensors, program.signature
    if PROGRAM in files:
        Node(None, "files", file).fail(f"lists {PROGRAM} itself")
    if WEIGHTS not in files:
        Node(None, "files", file).fail(f"lacks {WEIGHTS}")
    end = max((item.offset + item.nbytes for item in tensors.values()), default=0)
    if end > files[WEIGHTS].bytes:
        Node(None, "tensors", file).fail(f"end at byte {end}, but {WEIGHTS} has {files[WEIGHTS].bytes}")
    check_layout(program.layout, program.states, file)
    steps = {number: state.step for number, state in enumerate(program.states) if state.step is not None}
    check_steps(steps, lambda number: Node(None, f"states[{number}]", file))
    for number, state in enumerate(program.states):
        place = Node(None, f"states[{number}]", file)
        if state.step is not None:
            _check_state(state, state.step, program, place)
            continue
        if state.graph not in files:
            place.fail(f"needs the graph {state.graph!r}, which is not among the files")
        if len(state.outputs) != len(signature.outputs):
            place.fail(f"has {len(state.outputs)} outputs, the signature has {len(signature.outputs)}")
        for parameter, _ in state.inputs:
            if parameter >= len(signature.inputs):
                place.fail(f"takes input {parameter}, the signature has {len(signature.inputs)}")
        for item in state.initializers:
            _check_slice(item, tensors, place)
    for number, entry in enumerate(program.entries):
        place = Node(None, f"entries[{number}]", file)
        if entry.start_state >= len(program.states):
            place.fail(f"starts in state {entry.start_state}, there are {len(program.states)}")
        start = program.states[entry.start_state].step
        if start is not None:
            _check_start(start, program, place)
        if entry.check is not None:
            _check_check(entry.check, program, place, decides=start is not None)


def _check_state(state: State, step: Step, program: Program, place: Node) -> None:
    """The graphs, parameters and weights of a state of a program that decides."""
    for graph in (state.graph, step.rows.graph):
        if graph and graph not in program.files:
            place.fail(f"needs the graph {graph!r}, which is not among the files")
    if not state.graph and state.inputs:
        place.fail("has inputs but no graph")
    for parameter, _ in state.inputs:
        if parameter >= len(step.params):
            place.fail(f"takes parameter {parameter}, it has {len(step.params)}")
    for item in (*state.initializers, *step.rows.initializers):
        _check_slice(item, program.tensors, place)


def _check_start(step: Step, program: Program, place: Node) -> None:
    """The program starts with what the signature says."""
    if program.signature.preprocessing is not None:
        place.fail("starts a program that decides, which takes no raw samples")
    if program.steps < 1 or len(step.params) != len(program.signature.inputs):
        place.fail(f"starts a state with {len(step.params)} parameters, there are {len(program.signature.inputs)}")
    for kind, value in zip(step.params, program.signature.inputs, strict=True):
        wanted = tuple(1 if size == "N" else size for size in value.shape)
        if (kind.dtype, kind.shape) != (value.dtype, wanted):
            place.fail(f"starts a state that takes {kind.dtype}{list(kind.shape)} for {value.name!r}")


def _check_slice(item: Initializer, tensors: Mapping[str, Stored], place: Node) -> None:
    if item.tensor not in tensors:
        place.fail(f"weight {item.name!r} is the tensor {item.tensor!r}, which is not stored")
    if item.ranges is None:
        return
    shape = tensors[item.tensor].shape
    if len(item.ranges) != len(shape):
        place.fail(f"weight {item.name!r} has ranges for {len(item.ranges)} axes, {item.tensor!r} has {len(shape)}")
    for axis, (runs, size) in enumerate(zip(item.ranges, shape, strict=True)):
        if runs is None:
            continue
        if max(end for _, end in runs) > size:
            place.fail(f"weight {item.name!r} reads to {max(e for _, e in runs)} on axis {axis}, which has {size}")
        if sum(end - begin for begin, end in runs) > size:
            place.fail(f"weight {item.name!r} is longer than its tensor on axis {axis}")


def _check_check(check: Check, program: Program, place: Node, *, decides: bool) -> None:
    wanted = (("inputs", check.inputs, program.signature.inputs), ("outputs", check.outputs, program.signature.outputs))
    for what, names, values in wanted:
        if len(names) != len(values) and (what == "inputs" or not decides):  # what comes out depends on the way
            place.fail(f"checks {len(names)} {what}, the signature has {len(values)}")
        for name in names:
            if name not in program.tensors:
                place.fail(f"checks with the tensor {name!r}, which is not stored")
    lengths = program.signature.lengths
    for name, value in zip(check.inputs, program.signature.inputs, strict=True) if decides else ():
        stored = program.tensors[name]
        fits = [size in (wanted, "N") or (size in lengths and lengths[str(size)][0] <= wanted <= lengths[str(size)][1])
                for size, wanted in zip(value.shape, stored.shape, strict=False)]  # fmt: skip
        if stored.dtype != value.dtype or len(stored.shape) != len(value.shape) or not all(fits):
            place.fail(f"checks with {stored.dtype}{list(stored.shape)} for {value.name!r}")
