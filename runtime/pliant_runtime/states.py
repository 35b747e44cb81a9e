"""States of programs that decide: the part of the grammar that networks with data-dependent ways need.

    state   := {graph | null, inputs, outputs, initializers, max_threads, next, at, params, made, rows}
    params  := [[dtype, shape]]              what the state is given, shapes for one row; a size may be one of the
                                             program's `lengths` or `sizes`, equal names are equal sizes
    made    := [[dtype, shape]]              what its graph puts out
    next    := {if: ref, then: edge, else: edge} | {switch: ref, cases: [[integer, edge]]}
             | {return: struct} | {raise: {type, message}}
    edge    := {state, args: [ref | {const, dtype}]}                one argument per parameter of that state; a float
                                                                    may be "inf", "-inf" or "nan"
    ref     := {in: parameter} | {out: output}
    struct  := {t: ref} | {scalar: ref, type: "bool" | "int" | "float"} | {py} | {odd} | {list} | {tuple} | {dict}
    rows    := {graph, initializers, max_threads} | {why: text}     the same block for many rows at once, or why not

Everything is data: no expressions, no names of the user's code, nothing to evaluate.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pliant_runtime.jsonish import Node

SCALARS = {"bool": "bool", "int": "int64", "float": "float64"}
ODD = ("inf", "-inf", "nan")
_MOST = 10_000


@dataclass(frozen=True)
class Kind:
    """Dtype and shape of a tensor, for one row; free sizes have a name."""

    dtype: str
    shape: tuple[int | str, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor's shape is of this kind."""
        pairs = zip(self.shape, shape, strict=False)
        return len(shape) == len(self.shape) and all(isinstance(mine, str) or mine == its for mine, its in pairs)


@dataclass(frozen=True)
class Ref:
    """A parameter of a state (`made` false) or an output of its graph."""

    made: bool
    index: int


@dataclass(frozen=True)
class Const:
    """A number known beforehand."""

    value: bool | int | float
    dtype: str


@dataclass(frozen=True)
class Edge:
    """The state that follows, and what it is given."""

    state: int
    args: tuple[Ref | Const, ...]


@dataclass(frozen=True)
class Next:
    """What follows a block.

    Args:
        kind: "if", "switch", "return" or "raise".
        ref: what is decided on.
        edges: else and then of an `if` (in this order, so that a bool is an index), the cases of a switch.
        keys: the integers of the cases.
        returns: the structure returned, refs as `Ref`.
        error: kind and message of an error.
    """

    kind: str
    ref: Ref | None = None
    edges: tuple[Edge, ...] = ()
    keys: tuple[int, ...] = ()
    returns: Any = None
    error: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Rows:
    """The graph of a block for many rows at once, axis 0 before all others; `why` says where there is none."""

    graph: str
    initializers: tuple[Any, ...]
    max_threads: int | None
    why: str


@dataclass(frozen=True)
class Step:
    """A state of a program that decides."""

    at: str
    params: tuple[Kind, ...]
    made: tuple[Kind, ...]
    next: Next
    rows: Rows


def read_step(
    parts: Mapping[str, Node], dtypes: tuple[str, ...], initializer: Callable[[Node], Any], free: tuple[str, ...] = ()
) -> Step:
    """The members of a state that only programs that decide have; `free` are the names of free sizes.

    Raises:
        ArtifactError: anything that is not as the grammar says.
    """

    def size(node: Node) -> int | str:
        return node.choice(free) if free and isinstance(node.value, str) else node.integer(0, 1 << 40)

    def kind(node: Node) -> Kind:
        dtype, shape = node.list(lambda item: item, least=2, most=2)
        return Kind(dtype.choice(dtypes), tuple(shape.list(size, most=16)))

    params = tuple(parts["params"].list(kind, most=_MOST))
    made = tuple(parts["made"].list(kind, most=_MOST))
    outputs = parts["outputs"].value
    if not isinstance(outputs, list) or len(outputs) != len(made):
        parts["made"].fail("must have one entry per output")
    reader = _Reader(params, made)
    return Step(
        at=parts["at"].text(1000),
        params=params,
        made=made,
        next=reader.next(parts["next"]),
        rows=_rows(parts["rows"], initializer),
    )


def _odd(node: Node) -> float:
    """A float that JSON does not have."""
    return float(node.choice(ODD))


def _rows(node: Node, initializer: Callable[[Node], Any]) -> Rows:
    if isinstance(node.value, dict) and "why" in node.value:
        return Rows("", (), None, node.object(need=("why",))["why"].text(1000))
    parts = node.object(need=("graph", "initializers", "max_threads"))
    threads = parts["max_threads"]
    most = None if threads.value is None else threads.integer(1, 4096)
    return Rows(parts["graph"].file_name(), tuple(parts["initializers"].list(initializer)), most, "")


class _Reader:
    def __init__(self, params: tuple[Kind, ...], made: tuple[Kind, ...]) -> None:
        self.params, self.made = params, made

    def ref(self, node: Node) -> Ref:
        parts = node.mapping(1)
        if set(parts) == {"in"}:
            return Ref(False, parts["in"].integer(0, len(self.params) - 1))
        if set(parts) == {"out"}:
            return Ref(True, parts["out"].integer(0, len(self.made) - 1))
        return node.fail("must be {in: number} or {out: number}")

    def kind_of(self, ref: Ref) -> Kind:
        return (self.made if ref.made else self.params)[ref.index]

    def arg(self, node: Node) -> Ref | Const:
        if not isinstance(node.value, dict) or "const" not in node.value:
            return self.ref(node)
        parts = node.object(need=("const", "dtype"))
        dtype = parts["dtype"].choice(tuple(SCALARS.values()))
        value = parts["const"].value
        if dtype == "bool":
            if not isinstance(value, bool):
                parts["const"].fail("must be true or false")
            return Const(bool(value), dtype)
        if dtype == "int64":
            return Const(parts["const"].integer(-(1 << 62)), dtype)
        return Const(_odd(parts["const"]) if isinstance(value, str) else parts["const"].number(), dtype)

    def edge(self, node: Node) -> Edge:
        parts = node.object(need=("state", "args"))
        return Edge(parts["state"].integer(0, 1_000_000), tuple(parts["args"].list(self.arg, most=_MOST)))

    def next(self, node: Node) -> Next:
        kinds = ("if", "switch", "return", "raise")
        found = [kind for kind in kinds if isinstance(node.value, dict) and kind in node.value]
        if len(found) != 1:
            node.fail(f"must have one of {', '.join(kinds)}")
        kind = found[0]
        if kind == "if":
            parts = node.object(need=("if", "then", "else"))
            ref = self._decided(parts["if"], Kind("bool", ()))
            return Next(kind, ref, (self.edge(parts["else"]), self.edge(parts["then"])))
        if kind == "switch":
            parts = node.object(need=("switch", "cases"))
            ref = self._decided(parts["switch"], Kind("int64", ()))
            cases = parts["cases"].list(lambda item: item.list(lambda each: each, least=2, most=2), least=1, most=_MOST)
            keys = tuple(case[0].integer(-(1 << 62)) for case in cases)
            if len(set(keys)) != len(keys):
                parts["cases"].fail("name an integer twice")
            return Next(kind, ref, tuple(self.edge(case[1]) for case in cases), keys)
        if kind == "raise":
            parts = node.object(need=("raise",))["raise"].object(need=("type", "message"))
            return Next(kind, error=(parts["type"].text(200), parts["message"].text(10_000)))
        return Next(kind, returns=self.struct(node.object(need=("return",))["return"]))

    def _decided(self, node: Node, wanted: Kind) -> Ref:
        ref = self.ref(node)
        if self.kind_of(ref) != wanted:
            node.fail(f"must be {wanted.dtype}[], is {self.kind_of(ref).dtype}{list(self.kind_of(ref).shape)}")
        return ref

    def struct(self, node: Node) -> Any:
        if not isinstance(node.value, dict) or not 1 <= len(node.value) <= 2:
            node.fail("must be an object with one member")
        if "scalar" in node.value:
            parts = node.object(need=("scalar", "type"))
            kind = parts["type"].choice(SCALARS)
            return "scalar", self._decided(parts["scalar"], Kind(SCALARS[kind], ())), kind
        kind, inner = next(iter(node.mapping(1).items()))
        if kind == "t":
            return "t", self.ref(inner)
        if kind == "py":
            if not (inner.value is None or isinstance(inner.value, bool | str)):
                inner.number()
            return "py", inner.value
        if kind == "odd":
            return "py", _odd(inner)
        if kind in ("list", "tuple"):
            return kind, tuple(inner.list(self.struct, most=_MOST))
        if kind == "dict":
            return kind, {name: self.struct(item) for name, item in inner.mapping(_MOST).items()}
        return node.fail(f"must be one of t, scalar, py, odd, list, tuple, dict, got {kind!r}")


def check_steps(steps: Mapping[int, Step], place: Callable[[int], Node]) -> None:
    """Edges lead to states of the same kind, and give each parameter what it takes.

    Raises:
        ArtifactError: one does not.
    """
    for number, step in steps.items():
        for edge in step.next.edges:
            if edge.state not in steps:
                place(number).fail(f"goes to state {edge.state}, which is none of this program's")
            wanted = steps[edge.state].params
            if len(edge.args) != len(wanted):
                place(number).fail(f"gives state {edge.state} {len(edge.args)} values, it takes {len(wanted)}")
            for position, (arg, kind) in enumerate(zip(edge.args, wanted, strict=True)):
                given = _given(arg, step)
                if given != kind:
                    found = f"{given.dtype}{list(given.shape)}, it takes {kind.dtype}{list(kind.shape)}"
                    place(number).fail(f"gives state {edge.state} as value {position} {found}")


def _given(arg: Ref | Const, step: Step) -> Kind:
    if isinstance(arg, Const):
        return Kind(arg.dtype, ())
    return (step.made if arg.made else step.params)[arg.index]


def leaves(struct: Any) -> Iterator[Any]:
    """The ("t" | "scalar" | "py", ...) parts of a structure, depth first."""
    if struct[0] in ("t", "scalar", "py"):
        yield struct
    else:
        for item in struct[1].values() if struct[0] == "dict" else struct[1]:
            yield from leaves(item)
