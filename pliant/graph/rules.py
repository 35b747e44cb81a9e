"""The rule table: operator -> how it ties labels.

A rule is one function `(call) -> fields` (a tuple of fields, or a list of such tuples for an operator with several
results). An operator without a rule is sound all the same: everything it touches becomes fixed and is reported.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pliant.graph.ir import Node, resolve_target, schema_names
from pliant.graph.labels import Field, Labels, Traced, along, compact, vectors

Fields = tuple[Field, ...]
Result = Fields | list[Fields]


@dataclass
class Macs:
    """Multiply-accumulates of one call: `constant` times the sizes of the labelled axes in `vectors`."""

    node: str
    constant: float
    vectors: list[Tensor]


@dataclass
class Call:
    """One operator call during analysis: its operands (tensors as `Traced`), its real result, and the label store."""

    node: Node
    args: list[Any]
    kwargs: dict[str, Any]
    out: Any
    labels: Labels
    macs: list[Macs] = field(default_factory=list)

    def arg(self, name: str, default: Any = None) -> Any:
        """An argument by its schema name."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = schema_names(self.node.target)
        if name in names and names.index(name) < len(self.args):
            return self.args[names.index(name)]
        return default

    def raw(self, name: str) -> Any:
        """The argument as it stands in the program, with `Ref`s for values that depend on the batch."""
        names = schema_names(self.node.target)
        if name in self.node.kwargs:
            return self.node.kwargs[name]
        return self.node.args[names.index(name)] if names.index(name) < len(self.node.args) else None

    @property
    def tensors(self) -> list[Traced]:
        """Every tensor operand, nested lists included."""
        return list(_traced([self.args, list(self.kwargs.values())]))

    def cost(self, constant: float, *axes: Tensor | int) -> None:
        """Record multiply-accumulates: the product of `constant` and the sizes of `axes` (labels, or plain sizes)."""
        plain = math.prod(axis for axis in axes if isinstance(axis, int))
        self.macs.append(Macs(self.node.name, constant * plain, [axis for axis in axes if isinstance(axis, Tensor)]))


Rule = Callable[[Call], Result]
RULES: dict[str, Rule] = {}


def rule(*packets: str) -> Callable[[Rule], Rule]:
    """Enter a rule for ATen operators (names without "aten." and overload)."""

    def enter(fn: Rule) -> Rule:
        for packet in packets:
            RULES[f"aten.{packet}"] = fn
        return fn

    return enter


def find_rule(node: Node) -> Rule | None:
    """The rule of a call, or None."""
    if node.packet in RULES:
        return RULES[node.packet]
    op = resolve_target(node.target)
    tags = getattr(op, "tags", ())
    if torch.Tag.pointwise in tags:
        return pointwise
    if torch.Tag.reduction in tags:
        return reduction
    if getattr(op, "is_view", False) and node.target != "aten.view.dtype":
        return shape
    return None


def _traced(value: Any) -> Any:
    if isinstance(value, Traced):
        if isinstance(value.value, Tensor):
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _traced(item)


def _axis(dim: int, dims: int) -> int:
    return dim % dims if dims else 0


# -- operators that keep or move entries -----------------------------------------------------------------------------


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "contiguous", "clone", "detach", "alias", "to",
    "_to_copy", "lift_fresh", "lift_fresh_copy", "type_as", "zeros_like", "ones_like", "empty_like", "full_like",
    "rand_like", "randn_like", "softmax", "log_softmax", "_softmax", "_log_softmax", "bernoulli", "float", "half",
)  # fmt: skip
def keep(call: Call) -> Result:
    """Labels unchanged."""
    return call.tensors[0].fields


@rule(
    "reshape", "flatten", "_unsafe_view", "unflatten", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "numpy_T",
    "repeat_interleave", "flip", "movedim", "moveaxis", "swapaxes", "swapdims", "matrix_H", "mT", "adjoint", "narrow",
    "atleast_1d", "atleast_2d", "atleast_3d", "unsafe_split", "unsafe_chunk", "chunk", "tensor_split", "ravel",
)  # fmt: skip
def shape(call: Call) -> Result:
    """A shape operator runs on the labels themselves."""
    source = call.tensors[0]
    step = call.arg("step", 1) if call.node.packet == "aten.slice" else 1
    fields = source.fields
    if step != 1:
        fields = _without(call, fields, [_axis(call.arg("dim", 0), len(source.shape))])
    op = torch.reshape if call.node.packet == "aten.view" else resolve_target(call.node.target)
    args = [arg.value if isinstance(arg, Traced) else arg for arg in call.args[1:]]
    results: list[list[Field]] = []
    many = isinstance(call.out, tuple | list)
    for source_field in fields:
        moved = op(source_field.labels.expand(source.shape), *args, **call.kwargs)
        for i, labels in enumerate(moved if many else [moved]):
            if i >= len(results):
                results.append([])
            small = compact(labels)
            if small.numel() == 1:
                call.labels.fix([small])  # one unit alone cannot be dropped from a value that is nothing else
            else:
                results[i].append(Field(small, source_field.soft))
    outs = call.out if many else [call.out]
    tidied = [call.labels.tidy(results[i]) if i < len(results) else () for i in range(len(outs))]
    return tidied if many else tidied[0]


@rule("expand", "repeat", "tile", "expand_as")
def spread(call: Call) -> Result:
    """As `shape`, and an axis grown from one entry may have any size: it gets soft labels."""
    fields = shape(call)
    source, dims = call.tensors[0], call.out.dim()
    sizes = call.raw(schema_names(call.node.target)[1])
    lead = dims - len(source.shape)
    extra = []
    for axis, size in enumerate(call.out.shape):
        literal = isinstance(sizes, list) and isinstance(sizes[axis], int)
        if size > 1 and literal and (axis < lead or source.shape[axis - lead] == 1):
            extra.append(Field(along(call.labels.fresh(size), axis, dims), soft=True))
    return call.labels.tidy([*fields, *extra])


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def factory(call: Call) -> Result:
    """Constant tensors: every literal axis may have any size."""
    sizes = call.raw("size")
    dims = call.out.dim()
    return tuple(
        Field(along(call.labels.fresh(size), axis, dims), soft=True)
        for axis, size in enumerate(call.out.shape)
        if size > 1 and isinstance(sizes[axis], int)
    )


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Result:
    """Padding adds fixed entries along a labelled axis and changes nothing on others."""
    source, amounts = call.tensors[0], call.arg("pad")
    results = []
    for source_field in source.fields:
        padded = [
            amount if len(source.shape) - 1 - i // 2 in source_field.axes else 0 for i, amount in enumerate(amounts)
        ]
        results.append(Field(torch.constant_pad_nd(source_field.labels, padded, 0), source_field.soft))
    return call.labels.tidy(results)


# -- pointwise -------------------------------------------------------------------------------------------------------


def _aligned(operand: Fields, dims: int) -> list[Field]:
    return [Field(f.labels.reshape([1] * (dims - f.labels.dim()) + list(f.labels.shape)), f.soft) for f in operand]


def merge(call: Call, operands: Sequence[tuple[Fields, Sequence[int]]], dims: int) -> Fields:
    """Broadcast operands `(fields, shape)`: equal axes are tied, unlabelled ones fix their rivals."""
    groups = [_aligned(fields, dims) for fields, _ in operands]
    shapes = [[1] * (dims - len(size)) + list(size) for _, size in operands]

    def lacking() -> set[int]:
        """Axes along which some operand has entries but no labels."""
        return {
            axis
            for fields, size in zip(groups, shapes, strict=True)
            for axis in range(dims)
            if size[axis] > 1 and not any(axis in f.axes for f in fields)
        }

    changed = True
    while changed:
        changed = False
        fixed = lacking()
        every = [f for fields in groups for f in fields]
        for fields in groups:
            for i, f in enumerate(fields):
                rivals = [o for o in every if o is not f and set(o.axes) & set(f.axes) and o.axes != f.axes]
                if len(f.axes) > 1 and (fixed & set(f.axes) or rivals):
                    free = [axis for axis in f.axes if axis not in fixed]
                    fields[i] = call.labels.collapse(f, free[0] if free else f.axes[0])
                    changed = True
                    break
            if changed:
                break
    fixed = lacking()
    merged: dict[tuple[int, ...], Field] = {}
    for f in (f for fields in groups for f in fields):
        if fixed & set(f.axes):
            call.labels.fix([f])
        elif f.axes in merged:
            call.labels.tie(merged[f.axes].labels, f.labels)
            merged[f.axes] = Field(merged[f.axes].labels, merged[f.axes].soft and f.soft)
        elif f.axes:
            merged[f.axes] = f
    return call.labels.tidy(merged.values())


@rule("where", "masked_fill", "copy", "copy_", "hardswish", "hardsigmoid", "mish", "rsub", "addcmul", "addcdiv", "lerp",
      "add_", "mul_", "sub_", "div_", "logical_and", "logical_or", "isclose", "__and__", "__or__")  # fmt: skip
def pointwise(call: Call) -> Result:
    """Entry by entry, broadcasting."""
    operands = [(traced.fields, traced.shape) for traced in call.tensors]
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    return merge(call, operands, out.dim()) if isinstance(out, Tensor) else ()


@rule("glu")
def gated(call: Call) -> Result:
    """The first half times the gate of the second half: the halves are tied."""
    source = call.tensors[0]
    dims = len(source.shape)
    dim = _axis(call.arg("dim", -1), dims)
    half = source.shape[dim] // 2
    parts = []
    for begin in (0, half):
        cut = [
            Field(compact(f.labels.narrow(dim, begin, half)) if dim in f.axes else f.labels, f.soft)
            for f in source.fields
        ]
        parts.append((call.labels.tidy(cut), call.out.shape))
    return merge(call, parts, dims)


@rule("gather", "take_along_dim")
def gathered(call: Call) -> Result:
    """Entries chosen by value: nothing it touches can shrink."""
    return unknown_result(call)


def _vector_at(traced: Traced | None, axis: int, dims: int) -> list[tuple[Fields, list[int]]]:
    """A 1-d operand laid along `axis`; nothing where it is absent."""
    if not isinstance(traced, Traced) or not isinstance(traced.value, Tensor):
        return []
    size = [1] * dims
    size[axis] = traced.value.numel()
    return [(tuple(Field(along(f.labels.reshape(-1), axis, dims), f.soft) for f in traced.fields), size)]


@rule("batch_norm", "instance_norm", "prelu", "native_batch_norm", "_batch_norm_no_update", "cudnn_batch_norm")
def channel_norm(call: Call) -> Result:
    """Per-channel statistics and affine parameters lie along axis 1."""
    source = call.tensors[0]
    dims = len(source.shape)
    vectors_at = [op for traced in call.tensors[1:] for op in _vector_at(traced, min(1, dims - 1), dims)]
    return merge(call, [(source.fields, source.shape), *vectors_at], dims)


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Result:
    """Affine parameters lie along the last axes; statistics run over what is kept."""
    source, affine = call.tensors[0], call.tensors[1:]
    last = range(len(source.shape) - len(call.arg("normalized_shape", [0])), len(source.shape))
    fields = tuple(call.labels.collapse(f) if len(f.axes) > 1 and set(f.axes) & set(last) else f for f in source.fields)
    return merge(call, [(fields, source.shape), *((t.fields, t.shape) for t in affine)], len(source.shape))


@rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> Result:
    """A whole normalisation group lives or dies."""
    source = call.tensors[0]
    dims, groups = len(source.shape), call.arg("num_groups", call.arg("group"))
    each = source.shape[1] // groups
    fields = []
    for f in call.labels.settle(source.fields):
        if f.axes == (1,) and each > 1:
            joint = f.labels.reshape(groups, each)
            call.labels.tie(joint, joint[:, :1])
        fields.append(f)
    affine = [op for traced in call.tensors[1:] for op in _vector_at(traced, 1, dims)]
    return merge(call, [(tuple(fields), source.shape), *affine], dims)


# -- reductions and indexing -----------------------------------------------------------------------------------------


def _without(call: Call, fields: Fields, axes: Sequence[int]) -> Fields:
    """Fields after those that vary along `axes` were fixed."""
    settled = [call.labels.collapse(f) if len(f.axes) > 1 and set(f.axes) & set(axes) else f for f in fields]
    call.labels.fix(f for f in settled if set(f.axes) & set(axes))
    return tuple(f for f in settled if not set(f.axes) & set(axes))


def _dims(call: Call, dims: int) -> list[int]:
    found = call.arg("dim", call.arg("dims"))
    if found is None or found == []:
        return list(range(dims))
    return [_axis(d, dims) for d in (found if isinstance(found, list | tuple) else [found])]


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "logsumexp", "prod", "any", "all", "nansum",
      "linalg_vector_norm", "var_mean", "std_mean", "median", "square_sum", "count_nonzero")  # fmt: skip
def reduction(call: Call) -> Result:
    """The reduced axes go; a field that spans them and others keeps its outermost axis."""
    if len(call.tensors) > 1:
        return pointwise(call)  # max(a, b), min(a, b)
    source = call.tensors[0]
    dims = len(source.shape)
    gone = _dims(call, dims)
    results = []
    for f in source.fields:
        f = call.labels.collapse(f) if len(f.axes) > 1 and set(f.axes) & set(gone) else f
        if not set(f.axes) & set(gone):
            kept = (
                f.labels
                if call.arg("keepdim", False)
                else f.labels.reshape([size for axis, size in enumerate(f.labels.shape) if axis not in gone])
            )
            results.append(Field(kept, f.soft))
    fields = call.labels.tidy(results)
    return [fields for _ in call.out] if isinstance(call.out, tuple | list) else fields


@rule("cumsum", "cumprod", "sort", "topk", "argsort", "argmax", "argmin", "roll", "logcumsumexp", "cummax")
def ordered(call: Call) -> Result:
    """What depends on the order or the place of entries fixes its axis."""
    source = call.tensors[0]
    dims = len(source.shape)
    last = -1 if call.node.packet in ("aten.sort", "aten.topk", "aten.argsort") else None
    chosen = call.arg("dim", call.arg("dims", last))
    axes = list(range(dims)) if chosen in (None, []) else _listed(chosen, dims)
    rest = _without(call, source.fields, axes)
    out = call.out[0] if isinstance(call.out, tuple | list) else call.out
    if out.dim() < dims:
        rest = tuple(
            Field(f.labels.reshape([s for a, s in enumerate(f.labels.shape) if a not in axes]), f.soft) for f in rest
        )
    return [rest for _ in call.out] if isinstance(call.out, tuple | list) else rest


def _listed(chosen: Any, dims: int) -> list[int]:
    return [_axis(d, dims) for d in (chosen if isinstance(chosen, list | tuple) else [chosen])]


@rule("embedding")
def embedding(call: Call) -> Result:
    """Rows of the table are chosen by value, so they are fixed; columns pass to the last axis."""
    table, index = call.args[0], call.args[1]
    columns = vectors(_without(call, call.labels.settle(table.fields), [0]))
    dims = len(index.shape) + 1
    call.labels.fix(index.fields)
    return tuple(Field(along(vector, dims - 1, dims)) for vector in columns.values())


@rule("index", "index_select")
def index(call: Call) -> Result:
    """Axes indexed by a tensor are fixed; the rest passes."""
    source = call.tensors[0]
    if call.node.packet == "aten.index_select":
        used = [_axis(call.arg("dim"), len(source.shape))]
    else:
        used = [axis for axis, i in enumerate(call.arg("indices")) if i is not None]
    for other in call.tensors[1:]:
        call.labels.fix(other.fields)
    rest = _without(call, source.fields, used)
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


@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
      "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
      "max_pool2d_with_indices", "max_pool1d_with_indices", "upsample_nearest1d", "upsample_nearest2d",
      "upsample_bilinear2d", "upsample_linear1d", "upsample_bicubic2d", "upsample_nearest3d", "upsample_trilinear3d",
      "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "reflection_pad1d", "reflection_pad2d",
      "replication_pad1d", "replication_pad2d", "grid_sampler", "grid_sampler_2d")  # fmt: skip
def spatial(call: Call) -> Result:
    """Leading axes pass, spatial axes are fixed."""
    source = call.tensors[0]
    digits = [c for c in call.node.packet if c.isdigit()]
    count = int(digits[0]) if digits else len(source.shape) - 2
    for other in call.tensors[1:]:
        call.labels.fix(other.fields)
    rest = _without(call, source.fields, range(len(source.shape) - count, len(source.shape)))
    return [rest for _ in call.out] if isinstance(call.out, tuple | list) else rest


@rule("cat", "concat", "stack")
def concatenate(call: Call) -> Result:
    """Along the joined axis labels are strung together, on the other axes they are tied."""
    parts = call.tensors
    dims = call.out.dim()
    dim = _axis(call.arg("dim", 0), dims)
    if call.node.packet == "aten.stack":
        shapes = [(*t.shape[:dim], 1, *t.shape[dim:]) for t in parts]
        groups = [[Field(f.labels.unsqueeze(dim), f.soft) for f in t.fields] for t in parts]
    else:
        parts = [t for t in parts if len(t.shape) == dims]
        shapes = [t.shape for t in parts]
        groups = [list(t.fields) for t in parts]
    joint = [f.axes for fields in groups for f in fields if dim in f.axes]
    whole = all(any(dim in f.axes for f in fields) for fields in groups)
    if len(set(joint)) > 1 or (joint and len(joint[0]) > 1 and not whole):
        # parts of different make: what spans the joined axis and another one keeps the other one
        groups = [
            [
                call.labels.collapse(f, next(a for a in f.axes if a != dim)) if dim in f.axes and len(f.axes) > 1 else f
                for f in fields
            ]
            for fields in groups
        ]
        joint = [f.axes for fields in groups for f in fields if dim in f.axes]
    spanning = set(joint[0]) if joint else {dim}
    others = [
        (tuple(f for f in fields if dim not in f.axes), [1 if a in spanning else n for a, n in enumerate(size)])
        for fields, size in zip(groups, shapes, strict=True)
    ]
    rest = list(merge(call, others, dims))
    if joint and len(joint[0]) > 1:
        strung = torch.cat([next(f.labels for f in fields if dim in f.axes) for fields in groups], dim)
        rest.append(Field(strung))
    elif joint:
        pieces = []
        for fields, size in zip(groups, shapes, strict=True):
            mine = [f for f in fields if dim in f.axes]
            pieces.append(mine[0].labels.reshape(-1) if mine else torch.zeros(size[dim], dtype=torch.int64))
        rest.append(
            Field(along(torch.cat(pieces), dim, dims), soft=all(f.soft for g in groups for f in g if dim in f.axes))
        )
    return call.labels.tidy(rest)


# -- contractions ----------------------------------------------------------------------------------------------------


def contract(call: Call, operands: Sequence[tuple[Traced, Sequence[str]]], out: Sequence[str], *,
             fixed: Sequence[str] = (), per_output: bool = False) -> Fields:  # fmt: skip
    """Ties by letters, as in einsum: axes with one letter are one axis.

    Args:
        call: the call, for its label store and cost.
        operands: tensors with a letter for each axis; an axis of size 1 that broadcasts must have a letter of its own.
        out: letters of the result.
        fixed: letters whose axes cannot shrink (kernel taps).
        per_output: for convolutions: the cost takes spatial sizes from the result.
    """
    found: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    rigid = set(fixed)
    settled = [(vectors(call.labels.settle(traced.fields)), traced.shape, letters) for traced, letters in operands]
    for labelled, size, letters in settled:
        for axis, letter in enumerate(letters):
            sizes[letter] = max(sizes.get(letter, 1), size[axis])
            if size[axis] > 1 and axis not in labelled:
                rigid.add(letter)
    for labelled, _, letters in settled:
        for axis, vector in labelled.items():
            letter = letters[axis]
            if letter in rigid:
                call.labels.fix([vector])
            elif letter in found:
                call.labels.tie(found[letter], vector)
            else:
                found[letter] = vector
    if not per_output:
        call.cost(1.0, *(found.get(letter, size) for letter, size in sizes.items()))
    return tuple(Field(along(found[letter], axis, len(out))) for axis, letter in enumerate(out) if letter in found)


def _bias(call: Call, fields: Fields, bias: Any, out: Tensor) -> Fields:
    if not isinstance(bias, Traced):
        return fields
    return merge(call, [(fields, tuple(out.shape)), (bias.fields, bias.shape)], out.dim())


@rule("linear")
def linear(call: Call) -> Result:
    """`x[..., i] w[o, i] + b[o]`."""
    x, w = call.args[0], call.args[1]
    lead = [f"b{i}" for i in range(len(x.shape) - 1)]
    fields = contract(call, [(x, [*lead, "i"]), (w, ["o", "i"])], [*lead, "o"])
    return _bias(call, fields, call.arg("bias"), call.out)


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(call: Call) -> Result:
    """`a[..., n, k] b[..., k, m]` with broadcast leading axes."""
    return _matmul(call, call.tensors[0], call.tensors[1])


def _matmul(call: Call, a: Traced, b: Traced) -> Fields:
    rows = ["n", "k"] if len(a.shape) > 1 else ["k"]
    columns = ["k", "m"] if len(b.shape) > 1 else ["k"]
    count = max(len(a.shape) - len(rows), len(b.shape) - len(columns))

    def lead(traced: Traced, own: int, side: str) -> list[str]:
        n = len(traced.shape) - own
        return [f"b{count - n + i}" if traced.shape[i] > 1 else f"{side}{i}" for i in range(n)]

    out = [f"b{i}" for i in range(count)] + rows[:-1] + columns[1:]
    first, second = lead(a, len(rows), "x") + rows, lead(b, len(columns), "y") + columns
    return contract(call, [(a, first), (b, second)], out)


@rule("addmm", "baddbmm", "addmv", "addbmm")
def add_matmul(call: Call) -> Result:
    """`bias + a b`."""
    bias, a, b = call.tensors[:3]
    return _bias(call, _matmul(call, a, b), bias, call.out)


@rule("bilinear")
def bilinear(call: Call) -> Result:
    """`x1[..., i] w[o, i, j] x2[..., j] + b[o]`."""
    x, y, w = call.tensors[:3]
    lead = [f"b{i}" for i in range(len(x.shape) - 1)]
    fields = contract(call, [(x, [*lead, "i"]), (y, [*lead, "j"]), (w, ["o", "i", "j"])], [*lead, "o"])
    return _bias(call, fields, call.arg("bias"), call.out)


@rule("einsum")
def einsum(call: Call) -> Result:
    """Letters as given."""
    equation, parts = str(call.args[0]).replace(" ", ""), call.tensors
    left, _, right = equation.partition("->")
    if "." in equation:
        letters = left.split(",")
        lead = max(len(p.shape) - len(text.replace("...", "")) for p, text in zip(parts, letters, strict=True))

        def full(text: str, dims: int) -> list[str]:
            own = dims - len(text.replace("...", ""))
            head, _, tail = text.partition("...")
            return [*head, *(f"_{lead - own + i}" for i in range(own)), *tail]

        operands = [(p, full(text, len(p.shape))) for p, text in zip(parts, letters, strict=True)]
        return contract(call, operands, full(right, call.out.dim()))
    if "->" not in equation:
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    return contract(call, [(p, list(text)) for p, text in zip(parts, left.split(","), strict=True)], list(right))


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Result:
    """`softmax(q k' + mask) v` over the last two axes; leading axes (batch, heads) are shared."""
    q, k, v = call.tensors[:3]
    if call.arg("enable_gqa", False):
        times = q.shape[-3] // k.shape[-3]
        axis = len(k.shape) - 3
        k, v = (_repeated(call, traced, axis, times) for traced in (k, v))
    lead = [f"b{i}" for i in range(len(q.shape) - 2)]
    fields = contract(call, [(q, [*lead, "l", "d"]), (k, [*lead, "s", "d"]), (v, [*lead, "s", "e"])], [*lead, "l", "e"])
    heads = vectors(fields)
    sizes = [heads.get(axis, call.out.shape[axis]) for axis in range(call.out.dim())]
    call.macs[-1] = Macs(call.node.name, *_split([*sizes, k.shape[-2], 2]))
    mask = call.arg("attn_mask")
    if isinstance(mask, Traced) and isinstance(mask.value, Tensor):
        scores = [*call.out.shape[:-1], k.shape[-2]]
        lead_fields = tuple(f for f in fields if f.axes[0] < len(lead))
        merged = merge(call, [(lead_fields, [*scores[:-2], 1, 1]), (mask.fields, mask.shape)], len(scores))
        alive = {f.axes for f in merged}
        fields = tuple(f for f in fields if f.axes[0] >= len(lead) or f.axes in alive)
    return fields


def _split(axes: list[Tensor | int]) -> tuple[float, list[Tensor]]:
    return math.prod(a for a in axes if isinstance(a, int)), [a for a in axes if isinstance(a, Tensor)]


def _repeated(call: Call, traced: Traced, axis: int, times: int) -> Traced:
    fields = tuple(Field(f.labels.repeat_interleave(times, axis) if axis in f.axes else f.labels, f.soft)
                   for f in call.labels.settle(traced.fields))  # fmt: skip
    return Traced(traced.value.repeat_interleave(times, axis), fields)


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(call: Call) -> Result:
    """`x[n, c, ...] w[o, c, ...]`; with groups a unit is a whole group (a channel, when depthwise)."""
    if call.arg("transposed", False):
        return conv_transpose(call)
    return _convolution(call, out_axis=0, in_axis=1)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(call: Call) -> Result:
    """As a convolution, with the weight as `w[c, o / groups, ...]`."""
    return _convolution(call, out_axis=1, in_axis=0)


def _convolution(call: Call, *, out_axis: int, in_axis: int) -> Fields:
    x, w = call.tensors[:2]
    groups = call.arg("groups", 1)
    dims = len(x.shape)
    batched = dims == len(w.shape)
    space = [f"s{i}" for i in range(len(w.shape) - 2)]
    lead = ["n"] if batched else []
    taps = [f"t{i}" for i in range(len(space))]
    weight = [""] * 2 + taps
    channel = len(lead)
    if groups == 1:
        weight[out_axis], weight[in_axis] = "o", "c"
        call.labels.fix(f for f in call.labels.settle(x.fields) if f.axes[0] > channel)
        fields = contract(
            call, [(x, [*lead, "c", *space]), (w, weight)], [*lead, "o", *space], fixed=taps, per_output=True
        )
        fields = tuple(f for f in fields if f.axes[0] <= channel)
        inner: Tensor | int = vectors(call.labels.settle(x.fields)).get(channel, x.shape[channel])
    else:
        fields = _grouped(call, x, w, channel, groups)
        inner = x.shape[channel] // groups
    outer = vectors(fields).get(channel, call.out.shape[channel])
    spatial = (x if out_axis else Traced(call.out)).shape[channel + 1 :]
    call.cost(1.0, *call.out.shape[:channel], outer, inner, math.prod(w.shape[2:]), math.prod(spatial))
    return _biased_channel(call, fields, channel)


def _biased_channel(call: Call, fields: Fields, channel: int) -> Fields:
    bias = _vector_at(call.arg("bias"), channel, call.out.dim())
    size = [s if a == channel else 1 for a, s in enumerate(call.out.shape)]
    return merge(call, [(fields, size), *bias], call.out.dim()) if bias else fields


def _grouped(call: Call, x: Traced, w: Traced, channel: int, groups: int) -> Fields:
    """Channels as `[groups, each]`: labels within a group are tied, groups of input, weight and result are one axis."""
    labels = call.labels
    result = call.out.shape[channel]
    unit = None
    weight = vectors(labels.settle(w.fields))
    source = vectors(labels.settle(x.fields))
    labels.fix(vector for axis, vector in source.items() if axis != channel)
    labels.fix(vector for axis, vector in weight.items() if axis != 0)
    pieces = [source.get(channel), weight.get(0)]
    if any(piece is None for piece in pieces):
        labels.fix(piece for piece in pieces if piece is not None)
        return ()
    for piece in pieces:
        joint = piece.reshape(groups, -1)  # type: ignore[union-attr]
        labels.tie(joint, joint[:, :1])
        if unit is None:
            unit = joint[:, 0]
        else:
            labels.tie(unit, joint[:, 0])
    vector = torch.as_tensor(unit).repeat_interleave(result // groups)
    return (Field(along(vector, channel, call.out.dim())),)


# -- recurrent layers ------------------------------------------------------------------------------------------------


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> Result:
    """Gates `[gates * H, ...]` share the H units; H is one axis over layers, directions and initial states."""
    kind = call.node.packet
    if call.node.target.endswith(".data"):
        return unknown_result(call)
    gates = {"aten.lstm": 4, "aten.gru": 3}.get(kind, 1)
    x, hidden, weights = call.args[0], call.args[1], call.args[2]
    biased, layers, both = call.args[3], call.args[4], call.args[7]
    states = hidden if isinstance(hidden, list) else [hidden]
    directions = 2 if both else 1
    size = weights[1].shape[1]
    unit = call.labels.fresh(size)
    each = len(weights) // (layers * directions)
    if each != (4 if biased else 2):
        return unknown_result(call)  # a projected LSTM
    entry = vectors(call.labels.settle(x.fields)).get(len(x.shape) - 1)
    call.labels.fix(f for f in call.labels.settle(x.fields) if f.axes[0] != len(x.shape) - 1)
    steps = math.prod(x.shape[:-1])
    for layer in range(layers):
        inputs = entry if layer == 0 else unit.repeat(directions)
        for direction in range(directions):
            block = weights[(layer * directions + direction) * each :][:each]
            _tie_gates(call, block, gates, unit, inputs)
            wide: Tensor | int = inputs if inputs is not None else x.shape[-1]
            call.cost(steps * gates, unit, wide)
            call.cost(steps * gates, unit, unit)
    for state in states:
        for f in call.labels.settle(state.fields):
            if f.axes[0] == len(state.shape) - 1:
                call.labels.tie(f.labels.reshape(-1), unit)
            else:
                call.labels.fix([f])
        if state.shape[-1] > 1 and len(state.shape) - 1 not in vectors(call.labels.settle(state.fields)):
            call.labels.fix([unit])
    outs = [call.out[0].dim(), *(o.dim() for o in call.out[1:])]
    return [(Field(along(unit.repeat(directions if i == 0 else 1), d - 1, d)),) for i, d in enumerate(outs)]


def _tie_gates(call: Call, block: Sequence[Traced], gates: int, unit: Tensor, inputs: Tensor | None) -> None:
    """Weights `w_ih [gates*H, I]`, `w_hh [gates*H, H]` and biases `[gates*H]` of one layer and direction."""
    rows = unit.repeat(gates)
    for i, weight in enumerate(block):
        found = vectors(call.labels.settle(weight.fields))
        if 0 in found:
            call.labels.tie(found[0], rows)
        else:
            call.labels.fix([unit])
        if len(weight.shape) > 1 and 1 in found:
            column = unit if i == 1 else inputs
            if column is None:
                call.labels.fix([found[1]])
            else:
                call.labels.tie(found[1], column)
        elif len(weight.shape) > 1 and i == 0 and inputs is not None and weight.shape[1] > 1:
            call.labels.fix([inputs])


def unknown_result(call: Call) -> Result:
    """No rule applies: everything the call touches becomes fixed."""
    for traced in call.tensors:
        call.labels.fix(traced.fields)
    return [() for _ in call.out] if isinstance(call.out, tuple | list) else ()


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call) -> Result:
    """`v * g / norm(v)`: g has one entry for each index of the kept axis."""
    v, g = call.tensors[:2]
    fields = merge(call, [(v.fields, v.shape), (g.fields, g.shape)], len(v.shape))
    return [fields, ()] if isinstance(call.out, tuple | list) else fields
