"""The rules of operators that make, order and count indices: what a router of experts is made of.

`topk` along an axis of experts gives integers that stand for experts. As long as they only choose (`indexing`), are
compared with a counter, or are counted, experts can be left out like channels; any other use fixes them.
"""

import torch
from torch import Tensor

from pliant.graph.indexing import line_of, refuse, split
from pliant.graph.labels import Domain, Field, Traced, along
from pliant.graph.products import contract
from pliant.graph.rules import (
    RULES,
    Call,
    Fields,
    Result,
    axis_of,
    expand_as,
    factory,
    find_rule,
    pointwise,
    reduction,
    rule,
    shape,
    spread,
    unknown_result,
    without,
)

_AWARE = {f"aten.{name}" for name in (
    "gather", "take_along_dim", "embedding", "embedding_bag", "_embedding_bag", "index", "index_select", "scatter",
    "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_reduce", "index_fill", "index_put",
    "one_hot", "eq", "ne", "histc", "bincount", "sort", "argsort", "sym_size", "sym_numel",
    "zeros_like", "ones_like", "empty_like", "full_like", "_grouped_mm",
)} | {"transformers.grouped_mm_fallback"}  # fmt: skip
"""Operators whose rules see to the domains of their operands."""
_COPIES = {f"aten.{name}" for name in ("to", "_to_copy", "clone", "contiguous", "detach", "alias", "lift_fresh_copy",
                                       "type_as", "float", "long")}  # fmt: skip


_JOINS = ("aten.cat", "aten.concat", "aten.stack")
GROWS = (spread, factory)
"""Rules whose results have labels even where no operand has any."""


def follow_domains(call: Call) -> None:
    """Before its rule: hand on what integers stand for, or fix it where the operator may do anything with them."""
    packet, tensors = call.node.packet, call.tensors
    domains = [traced.domain for traced in tensors if traced.domain is not None]
    if packet in _AWARE or not domains:
        return
    if packet in _JOINS and len(domains) == len(tensors) and all(d.fits(len(domains[0].labels)) for d in domains):
        for other in domains[1:]:
            call.labels.tie(domains[0].labels, other.labels)
        call.domains[0] = domains[0]
        return
    first, copies = tensors[0], packet in _COPIES
    moves = find_rule(call.node) in (shape, spread, expand_as)
    outs = call.out if isinstance(call.out, tuple | list) else [call.out]
    whole = all(isinstance(out, Tensor) and out.dtype != torch.bool for out in outs)
    if first.domain is not None and whole and (copies or (moves and first.domain.movable)):
        call.domains.update(dict.fromkeys(range(len(outs)), first.domain))
        tensors = tensors[1:]
    for traced in tensors:
        call.labels.release(traced)


# -- making indices --------------------------------------------------------------------------------------------------


@rule("arange")
def counter(call: Call) -> Result:
    """`0 .. n - 1` stands for any axis of that size; from another start or with another step for none."""
    end = call.node.args[-1] if call.node.target.endswith(".start") else call.raw("end")
    if call.arg("start", 0) != 0 or call.arg("step", 1) != 1 or call.out.numel() < 2 or call.out.is_floating_point():
        return ()
    labels = call.labels.fresh(call.out.numel())
    call.domains[0] = Domain(labels, "index" if isinstance(end, int) else "count")
    return (Field(labels),) if isinstance(end, int) else ()


def _distinct(values: Tensor, dim: int, k: int, largest: bool) -> bool:
    """Whether the k first entries, and the one after them, differ from each other."""
    if values.dtype == torch.bool:
        return False
    best = values.movedim(dim, -1).topk(min(k + 1, values.shape[dim]), largest=largest).values
    return not bool((best[..., 1:] == best[..., :-1]).any())


def _choose(call: Call, dim: int, k: int, *, largest: bool) -> tuple[Fields, Domain | None]:
    """The k best along an axis: the fields of the rest, and what the places stand for where the axis has labels."""
    source = call.tensors[0]
    rest, line = split(call, source.fields, dim)
    if line is None:
        return rest, None
    vector = line.labels.reshape(-1)
    call.labels.floors.append((vector, k))
    return rest, Domain(vector, "index" if _distinct(source.value, dim, k, largest) else "place")


@rule("topk")
def topk(call: Call) -> Result:
    """The k best come in the order of their values, whatever the order along the axis."""
    dim = axis_of(call.arg("dim", -1), len(call.tensors[0].shape))
    fields, domain = _choose(call, dim, call.arg("k"), largest=call.arg("largest", True))
    if domain is not None:
        call.domains[1] = domain
    return [fields, fields]


@rule("max", "min", "argmax", "argmin")
def extreme(call: Call) -> Result:
    """The best along an axis, and where it is."""
    many, dim, source = isinstance(call.out, tuple | list), call.arg("dim"), call.tensors[0]
    if call.node.packet in ("aten.max", "aten.min") and not many:
        return reduction(call)
    if dim is None:
        call.labels.fix(source.fields)  # a place among all entries
        return ()
    axis = axis_of(dim, len(source.shape))
    fields, domain = _choose(call, axis, 1, largest="max" in call.node.packet)
    if domain is not None:
        call.domains[1 if many else 0] = domain
    if many:
        return reduction(call)
    kept = call.arg("keepdim", False)
    return fields if kept else tuple(Field(f.labels.squeeze(axis), f.soft) for f in fields)


@rule("cumsum", "cumprod", "roll", "logcumsumexp", "cummax", "cummin", "kthvalue", "mode", "median", "nanmedian")
def ordered(call: Call) -> Result:
    """What depends on the order or the place of entries fixes its axis."""
    source, many, last = call.tensors[0], isinstance(call.out, tuple | list), _LAST.get(call.node.packet)
    dims = len(source.shape)
    if call.node.packet == "aten.cumsum" and source.domain is not None and source.domain.kind == "tally" and dims == 1:
        call.domains[0] = Domain(source.domain.labels, "bounds")
        return source.fields
    chosen = call.arg("dim", call.arg("dims", last))
    listed = chosen if isinstance(chosen, list | tuple) else [chosen]
    axes = list(range(dims)) if chosen in (None, []) else [axis_of(dim, dims) for dim in listed]
    rest = without(call, source.fields, axes)
    out = call.out[0] if many else call.out
    if out.dim() < dims:
        kept = [a for a in range(dims) if a not in axes]
        rest = tuple(Field(f.labels.reshape([f.labels.shape[a] for a in kept]), f.soft) for f in rest)
    return [rest for _ in call.out] if many else rest


_LAST = dict.fromkeys(("aten.sort", "aten.argsort", "aten.msort", "aten.kthvalue", "aten.mode"), -1)
"""Operators that take the last axis unless told otherwise (others: all entries), as a `dim`."""


@rule("sort", "argsort")
def arrange(call: Call) -> Result:
    """Sorting indices along a plain axis puts rows into an order that follows the units' own.

    That order is harmless where rows are treated alike until they are put back: the sorted axis has labels of its own,
    and if anything holds on to them, the units are fixed (`Labels.orders`).
    """
    source, many = call.tensors[0], isinstance(call.out, tuple | list)
    domain, line = source.domain, line_of(source.fields, 0)
    places = 1 if many else 0
    if len(source.shape) != 1 or domain is None or len(source.value) < 2:
        call.labels.release(source)
        return ordered(call)
    if domain.kind == "order" and line is not None and torch.equal(line.labels, domain.labels):
        call.domains[places] = Domain(domain.labels)  # where each entry has gone
        return [(), ()] if many else ()
    if domain.kind != "index" or line is not None:
        call.labels.release(source)
        return ordered(call)
    order = call.labels.fresh(len(source.value))
    call.labels.orders.append((order, domain.labels))
    call.domains[0] = domain
    call.domains[places] = Domain(order, "order")
    return [(Field(order),), (Field(order),)] if many else (Field(order),)


# -- using indices ---------------------------------------------------------------------------------------------------


@rule("one_hot")
def one_hot(call: Call) -> Result:
    """The new last axis is the one that the integers stand for."""
    index, dims = call.args[0], call.out.dim()
    fields = [Field(f.labels.unsqueeze(-1), f.soft) for f in index.fields]
    if index.domain is not None and index.domain.fits(call.arg("num_classes", -1)):
        return call.labels.tidy([*fields, Field(along(index.domain.labels, dims - 1, dims))])
    call.labels.release(index)
    return tuple(fields)


rule("floor_divide")(pointwise)  # torch does not tag it; a sorted row's number over k is its token's


@rule("eq", "ne")
def compared(call: Call) -> Result:
    """Indices along one axis may be compared with each other (one is a counter, as a rule)."""
    domains = [traced.domain for traced in call.tensors if traced.domain is not None]
    n = len(domains[0].labels) if domains else 0
    if len(call.tensors) == len(domains) == 2 and all(domain.fits(n) for domain in domains):
        call.labels.tie(domains[0].labels, domains[1].labels)
    else:
        for traced in call.tensors:
            call.labels.release(traced)
    return pointwise(call)


@rule("histc", "bincount")
def tally(call: Call) -> Result:
    """How often each index occurs."""
    source, domain, n = call.tensors[0], call.tensors[0].domain, call.out.numel()
    full = (call.arg("bins"), call.arg("min"), call.arg("max")) == (n, 0, n - 1)
    if not (full or call.arg("minlength") == n) or domain is None or not domain.fits(n) or len(call.tensors) > 1:
        return refuse(call)
    line = line_of(source.fields, 0)
    for order, labels in call.labels.orders:
        if line is not None and torch.equal(line.labels.reshape(-1), order) and torch.equal(labels, domain.labels):
            call.domains[0] = Domain(order, "tally")
    return (Field(domain.labels),)


def grouped_mm(call: Call) -> Result:
    """`x[s, k] w[e, k, n]`, where the rows of x are sorted by e and `offs[e]` is where those of e end."""
    x, w, offs = call.args[0], call.args[1], call.arg("offs")
    if not isinstance(offs, Traced) or (len(x.shape), len(w.shape)) != (2, 3) or len(call.tensors) > 3:
        return refuse(call)
    rows, bounds = line_of(x.fields, 0), offs.domain
    follows = rows is not None and bounds is not None and torch.equal(rows.labels.reshape(-1), bounds.labels)
    if not follows or bounds is None or bounds.kind != "bounds":
        call.labels.release(offs)
        follows = False
    operands = [(x, ["s", "k"]), (w, ["e", "k", "n"]), (offs, ["e"])]
    fields = contract(call, operands, ["s", "n", "e"], fixed=[] if follows else ["s", "e"], per_output=True)
    inner = line_of(call.labels.settle(w.fields), 1)
    outer = line_of(fields, 1)
    call.cost(1.0, x.shape[0], x.shape[1] if inner is None else inner.labels.reshape(-1),
              w.shape[2] if outer is None else outer.labels.reshape(-1))  # fmt: skip
    return tuple(Field(f.labels.squeeze(-1), f.soft) for f in fields if f.axes != (2,))


RULES["aten._grouped_mm"] = RULES["transformers.grouped_mm_fallback"] = grouped_mm


@rule("searchsorted", "bucketize")
def bucketed(call: Call) -> Result:
    """Places among fixed boundaries: the axes of the values pass where all have the same boundaries."""
    values, bounds = call.arg("self"), call.arg("boundaries", call.arg("sorted_sequence"))
    if not isinstance(values, Traced) or len(bounds.shape) != 1 or len(call.tensors) > 2:
        return unknown_result(call)
    call.labels.fix(bounds.fields)
    return values.fields
