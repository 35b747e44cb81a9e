"""The rules of operators that choose entries by value or by place: indexing, gathering, sorting."""

from typing import Any

from pliant.graph.ir import resolve_target
from pliant.graph.labels import Field, Traced, along, compact, vectors
from pliant.graph.rules import Call, Result, axis_of, rule, unknown_result, without


@rule("gather", "take_along_dim")
def gathered(call: Call) -> Result:
    """Entries chosen by value: nothing it touches can shrink."""
    return unknown_result(call)


@rule("cumsum", "cumprod", "sort", "topk", "argsort", "argmax", "argmin", "roll", "logcumsumexp", "cummax")
def ordered(call: Call) -> Result:
    """What depends on the order or the place of entries fixes its axis."""
    source = call.tensors[0]
    dims = len(source.shape)
    last = -1 if call.node.packet in ("aten.sort", "aten.topk", "aten.argsort") else None
    chosen = call.arg("dim", call.arg("dims", last))
    axes = list(range(dims)) if chosen in (None, []) else _listed(chosen, dims)
    rest = without(call, source.fields, axes)
    out = call.out[0] if isinstance(call.out, tuple | list) else call.out
    if out.dim() < dims:
        rest = tuple(
            Field(f.labels.reshape([s for a, s in enumerate(f.labels.shape) if a not in axes]), f.soft) for f in rest
        )
    return [rest for _ in call.out] if isinstance(call.out, tuple | list) else rest


def _listed(chosen: Any, dims: int) -> list[int]:
    return [axis_of(d, dims) for d in (chosen if isinstance(chosen, list | tuple) else [chosen])]


@rule("embedding")
def embedding(call: Call) -> Result:
    """Rows of the table are chosen by value, so they are fixed; columns pass to the last axis."""
    table, index = call.args[0], call.args[1]
    columns = vectors(without(call, call.labels.settle(table.fields), [0]))
    dims = len(index.shape) + 1
    call.labels.fix(index.fields)
    return tuple(Field(along(vector, dims - 1, dims)) for vector in columns.values())


@rule("index", "index_select")
def index(call: Call) -> Result:
    """Axes indexed by a tensor are fixed; the rest passes."""
    source = call.tensors[0]
    if call.node.packet == "aten.index_select":
        used = [axis_of(call.arg("dim"), len(source.shape))]
    else:
        used = [axis for axis, i in enumerate(call.arg("indices")) if i is not None]
    for other in call.tensors[1:]:
        call.labels.fix(other.fields)
    rest = without(call, source.fields, used)
    args = [
        [i.value if isinstance(i, Traced) else i for i in a]
        if isinstance(a, list)
        else a.value
        if isinstance(a, Traced)
        else a
        for a in call.args[1:]
    ]
    op = resolve_target(call.node.target)
    return call.labels.tidy(Field(compact(op(f.labels.expand(source.shape), *args)), f.soft) for f in rest)
