"""The rules of operators that choose entries by value: indexing, gathering, scattering.

The axis that is indexed stays whole, the other axes pass. Where the integers are known to stand for indices along a
labelled axis (`Domain`), the axis they index is tied to that one instead: both shrink together.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.graph.ir import Node, Program, Ref, argument
from pliant.graph.labels import Domain, Field, Traced, along
from pliant.graph.rules import Call, Fields, Result, axis_of, merge, rule, unknown_result, vector_at, without

Sized = tuple[Fields, list[int]]
"""Fields of an operand and its shape."""


def line_of(fields: Fields, axis: int) -> Field | None:
    """The field along an axis and no other."""
    return next((f for f in fields if f.axes == (axis,)), None)


def split(call: Call, fields: Fields, axis: int) -> tuple[Fields, Field | None]:
    """The fields along other axes, and the one along this axis (one that runs along both is collapsed first)."""
    settled = tuple(call.labels.collapse(f) if len(f.axes) > 1 and axis in f.axes else f for f in fields)
    return tuple(f for f in settled if axis not in f.axes), line_of(settled, axis)


def pick(call: Call, fields: Fields, axis: int, index: Traced | None) -> tuple[Fields, Fields]:
    """An axis along which `index` names entries: tied to what its integers stand for, else fixed.

    Returns:
        The fields along other axes, and the axis' own where it was tied.
    """
    rest, line = split(call, fields, axis)
    domain = None if index is None else index.domain
    if line is not None and domain is not None and domain.fits(line.labels.numel()):
        call.labels.tie(domain.labels, line.labels.reshape(-1))
        return rest, (line,)
    call.labels.fix([] if line is None else [line])
    if index is not None:
        call.labels.release(index)
    return rest, ()


def refuse(call: Call) -> Result:
    """Everything the call touches becomes fixed, what its integers stand for as well."""
    for traced in call.tensors:
        call.labels.release(traced)
    return unknown_result(call)


def _hand_on(call: Call, source: Traced) -> None:
    """Entries of the result are entries of the source: what they stand for stays."""
    if source.domain is not None and source.domain.movable:
        call.domains[0] = source.domain
    else:
        call.labels.release(source)


def _side_by_side(call: Call, operands: Sequence[Traced], dim: int) -> list[Sized]:
    """Operands that are entry by entry on all axes but `dim`; where their sizes differ they become fixed."""
    odd = [a for a in range(len(operands[0].shape)) if a != dim and len({t.shape[a] for t in operands}) > 1]
    return [(without(call, t.fields, odd), [1 if a in odd else n for a, n in enumerate(t.shape)]) for t in operands]


# -- reading ---------------------------------------------------------------------------------------------------------


@rule("gather", "take_along_dim")
def gathered(call: Call) -> Result:
    """`x[.., index[.., i, ..], ..]`."""
    source, index = call.args[0], call.arg("index", call.arg("indices"))
    if call.arg("dim") is None or len(source.shape) != len(index.shape) or not index.shape:
        return refuse(call)
    dims = len(source.shape)
    dim = axis_of(call.arg("dim"), dims)
    rest, _ = pick(call, source.fields, dim, index)
    _hand_on(call, source)
    (kept, sizes), chosen = _side_by_side(call, [Traced(source.value, rest), index], dim)
    sizes[dim] = 1
    return merge(call, [(kept, sizes), chosen], dims)


@rule("embedding")
def embedding(call: Call) -> Result:
    """Rows of the table are chosen by value; columns become the last axis."""
    return _Indexing(call, call.args[0], {0: call.args[1]}).read()


@rule("embedding_bag", "_embedding_bag")
def embedding_bag(call: Call) -> Result:
    """As `embedding`, with the rows of a bag summed."""
    columns, _ = pick(call, call.labels.settle(call.args[0].fields), 0, None)
    for other in call.tensors[1:]:
        call.labels.fix(other.fields)
        call.labels.release(other)
    return [columns if i in (0, 3) and out.dim() == 2 else () for i, out in enumerate(call.out)]


@rule("index")
def index(call: Call) -> Result:
    """`x[i, :, j]`: axes with an index are chosen from, the rest passes."""
    return _Indexing(call, call.args[0], _by_axis(call.arg("indices"))).read()


@rule("index_select")
def index_select(call: Call) -> Result:
    """As `index`, on one axis."""
    source, chosen = call.args[0], call.arg("index")
    if not chosen.shape:
        return refuse(call)
    return _Indexing(call, source, {axis_of(call.arg("dim"), len(source.shape)): chosen}).read()


def _by_axis(indices: Sequence[Traced | None]) -> dict[int, Traced]:
    """Index tensors by the (first) axis they index; a mask takes as many axes as it has."""
    found, axis = {}, 0
    for i in indices:
        if i is not None:
            found[axis] = i
        axis += len(i.shape) if i is not None and _is_mask(i) else 1
    return found


def _is_mask(traced: Traced) -> bool:
    return traced.value.dtype in (torch.bool, torch.uint8)


class _Indexing:
    """`source[indices]`: its axes are those of the source that stay, with the axes of the index tensors in between."""

    def __init__(self, call: Call, source: Traced, indexed: Mapping[int, Traced]) -> None:
        self.call, self.source, self.indexed = call, source, indexed
        dims, masks = len(source.shape), [i for i in indexed.values() if _is_mask(i)]
        used = sorted(axis + k for axis, i in indexed.items() for k in range(len(i.shape) if i in masks else 1))
        self.masked = bool(masks)
        self.stay = [a for a in range(dims) if a not in used]
        sizes = [i.shape for i in indexed.values() if i not in masks]
        mask_size = int(masks[0].value.sum()) if masks else 1
        sizes += [(mask_size,)] if masks else []
        self.broad = list(torch.broadcast_shapes(*sizes))  # type: ignore[no-untyped-call]
        self.lead = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
        rest = source.fields
        lines: list[Field] = []
        for axis in used:
            i = indexed.get(axis)
            rest, line = pick(call, rest, axis, None if i is None or i in masks else i)
            lines += line
        self.rest, self.lines = rest, tuple(lines)
        for mask in masks:
            call.labels.fix(mask.fields)
        operands = [(i.fields, i.shape) for i in indexed.values() if i not in masks]
        self.entries = merge(call, operands, len(self.broad)) if operands else ()

    @property
    def shape(self) -> list[int]:
        """The shape of the result."""
        sizes = [self.source.shape[a] for a in self.stay]
        return [*sizes[: self.lead], *self.broad, *sizes[self.lead :]]

    def own(self) -> range:
        """The result's axes that come from the index tensors."""
        return range(self.lead, self.lead + len(self.broad))

    def read(self) -> Fields:
        """The fields of the result."""
        _hand_on(self.call, self.source)
        return self.call.labels.tidy(self.laid())

    def laid(self) -> Fields:
        """Fields of source and index tensors along the result's axes."""
        before, after = self.lead, len(self.stay) - self.lead
        found = []
        for f in self.rest:
            sizes = [f.labels.shape[a] for a in self.stay]
            sizes[before:before] = [1] * len(self.broad)
            found.append(Field(f.labels.reshape(sizes), f.soft))
        own = [f.labels.reshape([1] * before + list(f.labels.shape) + [1] * after) for f in self.entries]
        return (*found, *(Field(labels, f.soft) for labels, f in zip(own, self.entries, strict=True)))


def constant_slices(program: Program) -> Program:
    """The program with lists of neighbouring places (`x[:, [-2]]`) written as slices, whose bounds can follow."""
    made = {node.name: node for node in program}

    def places(value: Any) -> Tensor | None:
        while isinstance(value, Ref) and made[value.name].packet in ("aten.lift_fresh_copy", "aten.detach_"):
            value = made[value.name].args[0]
        found = program.constants.get(made[value.name].target) if isinstance(value, Ref) else None
        usable = found is not None and found.dim() == 1 and found.dtype == torch.int64 and found.numel() > 0
        return found if usable else None

    for node in program:
        if node.packet == "aten.index_select":
            _as_slice(node, argument(node, "dim"), places(argument(node, "index")))
        elif node.packet == "aten.index":
            given = [(dim, i) for dim, i in enumerate(node.args[1]) if i is not None]
            if len(given) == 1:
                _as_slice(node, given[0][0], places(given[0][1]))
    return program.without_dead()


def _as_slice(node: Node, dim: int, places: Tensor | None) -> None:
    if places is None or bool((places.diff() != 1).any()) or (places[0] < 0) != (places[-1] < 0):
        return
    first, end = int(places[0]), int(places[-1]) + 1
    node.target, node.args, node.kwargs = "aten.slice.Tensor", (node.args[0], dim, first, end or 2**63 - 1), {}


# -- writing ---------------------------------------------------------------------------------------------------------


def _one_each(indices: Sequence[Traced]) -> bool:
    """Whether no entry is written twice."""
    return any(i.domain is not None and i.domain.kind == "order" for i in indices)


def _written(call: Call, base: Traced, fields: Fields) -> Fields:
    """Fields of a value that something was written into: its entries are no longer alike."""
    call.labels.release(base)
    return call.labels.tidy(Field(f.labels) for f in fields)


@rule("scatter", "scatter_add", "scatter_reduce")
def scattered(call: Call) -> Result:
    """Entries of `src` go where `index` says along `dim`; on the other axes all three are entry by entry."""
    base, index, src, dims = call.args[0], call.arg("index"), call.arg("src"), call.out.dim()
    if len(index.shape) != dims or not dims:
        return refuse(call)
    dim = axis_of(call.arg("dim"), dims)
    rest, line = pick(call, base.fields, dim, index)
    parts = [Traced(base.value, rest), index]
    if call.arg("value") == -math.inf:  # those are out, and somebody else must be left to be chosen
        call.labels.floors += [(f.labels.reshape(-1), index.shape[dim] + 1) for f in line]
    if isinstance(src, Traced) and len(src.shape) == dims:
        call.labels.release(src)
        parts.append(src)
    (kept, sizes), *sides = _side_by_side(call, parts, dim)
    summed = call.node.packet != "aten.scatter" or call.arg("reduce") is not None
    if len({side[1][dim] for side in sides}) > 1 or not (summed or _one_each([index])):
        sides = [(without(call, fields, [dim]), [1 if a == dim else n for a, n in enumerate(size)])
                 for fields, size in sides]  # fmt: skip
    message = split(call, merge(call, sides, dims), dim)[0]
    sizes[dim] = 1
    flat = [1 if a == dim else n for a, n in enumerate(sides[0][1])]
    return _written(call, base, (*merge(call, [(kept, sizes), (message, flat)], dims), *line))


@rule("index_add", "index_copy", "index_reduce")
def index_added(call: Call) -> Result:
    """Slices of `source` go to places along `dim`; the other axes are entry by entry."""
    base, index, source, dims = call.args[0], call.arg("index"), call.arg("source"), call.out.dim()
    dim = axis_of(call.arg("dim"), dims)
    if len(source.shape) != dims or not index.shape:
        return refuse(call)
    rest, line = pick(call, base.fields, dim, index)
    call.labels.release(source)
    message = merge(call, [(source.fields, source.shape), *vector_at(index, dim, dims)], dims)
    if call.node.packet == "aten.index_copy" and not _one_each([index]):
        message = without(call, message, [dim])
    sizes = [1 if a == dim else n for a, n in enumerate(base.shape)]
    merged = merge(call, [(rest, sizes), (split(call, message, dim)[0], sizes)], dims)
    return _written(call, base, (*merged, *line))


@rule("index_fill")
def index_fill(call: Call) -> Result:
    """Whole slices along `dim` become one number."""
    base, index, value = call.args[0], call.arg("index"), call.arg("value")
    call.labels.fix(index.fields)
    if isinstance(value, Traced):
        call.labels.release(value)
    rest, line = pick(call, base.fields, axis_of(call.arg("dim"), call.out.dim()), index)
    return _written(call, base, (*rest, *line))


@rule("index_put")
def index_put(call: Call) -> Result:
    """`x[indices] = values`, or `+=`."""
    base, values, indexed = call.args[0], call.arg("values"), _by_axis(call.arg("indices"))
    if _inverts(call, base, list(indexed.values()), values):
        return ()
    ((first, one), *others), dims = indexed.items(), call.out.dim()
    if not others and _is_mask(one) and values.value.numel() == 1:
        before, after = [1] * first, [1] * (dims - first - len(one.shape))
        mask = tuple(Field(f.labels.reshape([*before, *f.labels.shape, *after]), f.soft) for f in one.fields)
        sizes = [*before, *one.shape, *after]
        return _written(call, base, merge(call, [(base.fields, base.shape), (mask, sizes)], dims))
    places = _Indexing(call, base, indexed)
    call.labels.release(values)
    message = merge(call, [(places.laid(), places.shape), (values.fields, values.shape)], len(places.shape))
    if not (call.arg("accumulate", False) or _one_each(list(indexed.values()))):
        without(call, message, list(places.own()))
    return _written(call, base, (*places.rest, *places.lines))


def _inverts(call: Call, base: Traced, indices: Sequence[Traced], values: Traced) -> bool:
    """`x[order] = 0, 1, 2, ...`: the result tells where each entry has gone, so it indexes the sorted axis."""
    order, counter = line_of(indices[0].fields, 0), values.domain
    if len(indices) > 1 or not _one_each(indices) or order is None or counter is None:
        return False
    own = line_of(values.fields, 0)  # a counter over a labelled axis stands for that axis
    counts = counter.kind == "index" and own is not None and torch.equal(own.labels, counter.labels)
    if (
        not (counts or counter.kind == "count")
        or not base.shape == values.shape == indices[0].shape
        or call.arg("accumulate", False)
    ):
        return False
    call.labels.tie(counter.labels, order.labels.reshape(-1))
    call.domains[0] = Domain(order.labels.reshape(-1))
    return True


@rule("masked_scatter")
def masked_scatter(call: Call) -> Result:
    """Where the mask says the same for whole rows, rows of `source` are written in order and columns pass."""
    base, mask, source = call.tensors[:3]
    last = len(base.shape) - 1
    shown = line_of(mask.fields, last)
    if shown is None or not shown.soft or mask.shape != base.shape or source.shape[-1:] != base.shape[-1:]:
        return refuse(call)
    columns = []
    for traced in (base, mask, source):
        call.labels.release(traced)
        axis = len(traced.shape) - 1
        kept = without(call, call.labels.settle(traced.fields), range(axis))
        columns.append((tuple(Field(along(f.labels.reshape(-1), last, last + 1), f.soft) for f in kept),
                        [1] * last + [traced.shape[-1]]))  # fmt: skip
    return merge(call, columns, last + 1)


@rule("slice_scatter", "select_scatter")
def written_part(call: Call) -> Result:
    """`base` with `src` in place of a range along `dim`: there both have the same units."""
    base, src, dims = call.args[0], call.args[1], call.out.dim()
    dim = axis_of(call.arg("dim", 0), dims)
    one, n = call.node.packet == "aten.select_scatter", base.shape[dim]
    given = [Field(f.labels.unsqueeze(dim), f.soft) for f in src.fields] if one else src.fields
    start = call.arg("index", call.arg("start")) or 0
    start = min(max(start + n if start < 0 else start, 0), n)
    length = 1 if one else src.shape[dim]
    (rest, line), (sides, written) = split(call, base.fields, dim), split(call, tuple(given), dim)
    if call.arg("step", 1) != 1:
        call.labels.fix(f for f in (line, written) if f is not None)
        line = written = None
    if line is not None:
        part = line.labels.narrow(dim, start, length)
        call.labels.fix([part]) if written is None else call.labels.tie(part, written.labels)
    elif written is not None:
        call.labels.fix([written])
    call.labels.release(src)
    sizes = [1 if a == dim else size for a, size in enumerate(base.shape)]
    merged = merge(call, [(rest, sizes), (sides, sizes)], dims)
    return _written(call, base, (*merged, *([] if line is None else [line])))
