"""The rule table: operator -> how it ties labels.

A rule is one function `(call) -> fields` (a tuple of fields, or a list of such tuples for an operator with several
results). An operator without a rule is sound all the same: everything it touches becomes fixed and is reported.
"""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pliant.graph.ir import Node, resolve_target, schema_names
from pliant.graph.labels import Domain, Field, Labels, Traced, along, compact

Fields = tuple[Field, ...]
Result = Fields | list[Fields]


@dataclass
class Macs:
    """Multiply-accumulates of one call: `constant` times the sizes of the labelled axes in `vectors`."""

    node: str
    constant: float
    vectors: list[Tensor]


@dataclass
class Mix:
    """Entries along an axis become one: operands as (value, axis), and `how`: sum (of products), mean, max or other."""

    node: str
    how: str
    operands: tuple[tuple[Traced, int], ...]


@dataclass
class Call:
    """One operator call during analysis: its operands (tensors as `Traced`), its real result, and the label store."""

    node: Node
    args: list[Any]
    kwargs: dict[str, Any]
    out: Any
    labels: Labels
    macs: list[Macs] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    domains: dict[int, Domain] = field(default_factory=dict)
    """What the integers of each result stand for, where a rule says so."""
    multiples: Container[str] = ()
    """Nodes whose number is a multiple of the batch (or of a length): a size that may follow units."""

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

    def mix(self, how: str, *operands: tuple[Traced, int]) -> None:
        """Record that the entries along an axis that all operands share become one (see `Mix`)."""
        self.mixes.append(Mix(self.node.name, how, operands))


Rule = Callable[[Call], Result]
RULES: dict[str, Rule] = {}


def rule(*packets: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operators (names without overload; without a namespace too where it is "aten.")."""

    def enter(fn: Rule) -> Rule:
        for packet in packets:
            RULES[packet if "." in packet else f"aten.{packet}"] = fn
        return fn

    return enter


SLICES = ("aten.slice", "aten.narrow", "aten.select", "aten.slice_scatter", "aten.select_scatter")
"""Operators with bounds along an axis."""
_MERGERS = ("aten.view", "aten.reshape", "aten.flatten", "aten._unsafe_view")
"""Operators that make one axis of several, index by index."""
_NOT_SHAPE = ("aten.as_strided", "aten.hsplit", "aten.vsplit", "aten.dsplit")
"""Views that see memory otherwise than index by index, or whose numbers nobody makes follow."""


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
    if getattr(op, "is_view", False) and node.packet not in _NOT_SHAPE and node.target != "aten.view.dtype":
        return shape
    return None


def _traced(value: Any) -> Any:
    if isinstance(value, Traced):
        if isinstance(value.value, Tensor):
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _traced(item)


def axis_of(dim: int, dims: int) -> int:
    """A possibly negative axis as one that is not."""
    return dim % dims if dims else 0


# -- operators that keep or move entries -----------------------------------------------------------------------------


@rule(
    "dropout", "feature_dropout", "alpha_dropout", "native_dropout", "contiguous", "clone", "detach", "alias", "to",
    "_to_copy", "lift_fresh", "lift_fresh_copy", "type_as", "zeros_like", "ones_like", "empty_like", "full_like",
    "rand_like", "randn_like", "softmax", "log_softmax", "_softmax", "_log_softmax", "float", "half", "fill", "zero",
    "_safe_softmax", "special_softmax", "special_log_softmax", "rrelu", "log_sigmoid", "renorm", "dequantize", "lift",
    "fake_quantize_per_tensor_affine", "poisson", "exponential", "uniform", "cauchy", "geometric", "log_normal",
    "normal_functional", "real", "imag", "conj", "_conj", "_neg_view", "resolve_conj", "resolve_neg",
)  # fmt: skip
def keep(call: Call) -> Result:
    """Labels unchanged."""
    source = call.tensors[0]
    if "softmax" in call.node.packet:
        call.mix("other", (source, axis_of(call.arg("dim"), len(source.shape))))
    return source.fields


@rule(
    "reshape", "flatten", "_unsafe_view", "unflatten", "pixel_shuffle", "pixel_unshuffle", "numpy_T",
    "repeat_interleave", "flip", "movedim", "moveaxis", "swapaxes", "swapdims", "matrix_H", "mT", "adjoint", "narrow",
    "atleast_1d", "atleast_2d", "atleast_3d", "unsafe_split", "unsafe_chunk", "chunk", "tensor_split", "ravel", "rot90",
    "fliplr", "flipud",
)  # fmt: skip
def shape(call: Call) -> Result:
    """A shape operator runs on the labels themselves."""
    source = call.tensors[0]
    step = call.arg("step", 1) if call.node.packet == "aten.slice" else 1
    merges = call.node.packet in _MERGERS
    fields = tuple(sorted(source.fields, key=lambda f: f.axes, reverse=call.labels.inner == "head_dim"))
    if step != 1:
        fields = _in_blocks(call, fields, axis_of(call.arg("dim", 0), len(source.shape)), step)
    if call.node.packet == "aten.slice" and not call.out.numel():
        return tuple(f for f in fields if axis_of(call.arg("dim", 0), len(source.shape)) not in f.axes)
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
    tidied = [call.labels.tidy(results[i], merged=merges) if i < len(results) else () for i in range(len(outs))]
    return tidied if many else tidied[0]


def _in_blocks(call: Call, fields: Fields, axis: int, step: int) -> Fields:
    """Every `step`-th entry of an axis is to be taken: a block of so many becomes one unit, else the axis is fixed."""
    n, begin, end = call.tensors[0].shape[axis], call.raw("start") or 0, call.raw("end")
    whole = end is None or (isinstance(end, int) and end >= n)
    if n % step or not whole or not isinstance(begin, int) or not 0 <= begin < step:
        return without(call, fields, [axis])
    settled = [call.labels.collapse(f) if len(f.axes) > 1 and axis in f.axes else f for f in fields]
    for blocks in (f.labels.reshape(-1, step) for f in settled if f.axes == (axis,)):
        call.labels.tie(blocks, blocks[:, :1])
    return tuple(settled)


@rule("expand_as")
def expand_as(call: Call) -> Result:
    """Both have one size; an axis grown from one entry follows the other operand's, and is alike along it."""
    source, other = call.tensors[:2]
    soft = tuple(Field(f.labels, soft=True) for f in other.fields)
    return merge(call, [(source.fields, source.shape), (soft, other.shape)], call.out.dim())


@rule("expand", "broadcast_to", "repeat", "tile")
def spread(call: Call) -> Result:
    """As `shape`, and an axis grown from one entry may have any size: it gets soft labels."""
    fields = shape(call)
    source, dims = call.tensors[0], call.out.dim()
    sizes = call.raw(schema_names(call.node.target)[1])
    if isinstance(sizes, list):
        sizes = [1] * (dims - len(sizes)) + sizes  # `tile` may name the last axes alone
    lead = dims - len(source.shape)
    extra = []
    for axis, size in enumerate(call.out.shape):
        free = isinstance(sizes, list) and (isinstance(sizes[axis], int) or sizes[axis].name in call.multiples)
        if size > 1 and free and (axis < lead or source.shape[axis - lead] == 1):
            extra.append(Field(along(call.labels.fresh(size), axis, dims), soft=True))
    return call.labels.tidy([*fields, *extra])


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
def factory(call: Call) -> Result:
    """Tensors of one number or of noise: every literal axis may have any size."""
    sizes = call.raw("size")
    dims = call.out.dim()
    return tuple(
        Field(along(call.labels.fresh(size), axis, dims), soft=True)
        for axis, size in enumerate(call.out.shape)
        if size > 1 and isinstance(sizes[axis], int)
    )


@rule("meshgrid")
def meshgrid(call: Call) -> Result:
    """Result k holds vector k along axis k, and is alike along the axes of the other vectors."""
    vectors, dims = call.args[0], len(call.args[0])
    places = [1, 0, *range(2, dims)] if call.arg("indexing", "ij") == "xy" and dims > 1 else list(range(dims))
    lines = [[(along(f.labels.reshape(-1), places[j], dims), j) for f in v.fields] for j, v in enumerate(vectors)]
    return [tuple(Field(line, soft=j != k) for each in lines for line, j in each) for k in range(dims)]


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> Result:
    """Padding adds fixed entries along a labelled axis and changes nothing on others.

    An axis that is cropped (a negative amount), or filled from its own entries, is fixed.
    """
    source, amounts = call.tensors[0], call.arg("pad")
    last = len(source.shape) - 1
    filled = {last - i // 2 for i, amount in enumerate(amounts) if amount}
    own = filled if call.arg("mode", "constant") != "constant" else set()
    rest = without(call, source.fields, [*own, *(last - i // 2 for i, amount in enumerate(amounts) if amount < 0)])
    results = []
    for f in rest:
        if len(f.axes) > 1 and filled & set(f.axes):
            f = call.labels.collapse(f, next((axis for axis in f.axes if axis not in filled), None))
        padded = [amount if last - i // 2 in f.axes else 0 for i, amount in enumerate(amounts)]
        results.append(Field(torch.constant_pad_nd(f.labels, padded, 0), f.soft))
    return call.labels.tidy(results)


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> Result:
    """As `[groups, each]` transposed: what lies at one place in all groups is one unit."""
    source, groups = call.tensors[0], call.arg("groups")
    fields = []
    for f in call.labels.settle(source.fields):
        if f.axes == (1,):
            joint = f.labels.reshape(groups, -1)
            call.labels.tie(joint, joint[:1])
        fields.append(Field(compact(resolve_target(call.node.target)(f.labels.expand(source.shape), groups)), f.soft))
    return call.labels.tidy(fields)


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
                    fields[i] = call.labels.collapse(f, call.labels.prefer(free or f.axes))
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
      "add_", "mul_", "sub_", "div_", "logical_and", "logical_or", "isclose", "__and__", "__or__", "complex", "polar",
      "bernoulli", "normal",
      "absolute", "negative", "multiply", "divide", "true_divide", "subtract", "greater", "greater_equal", "less",
      "less_equal", "not_equal", "fix", "isreal", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2",
      "arctanh")  # fmt: skip
def pointwise(call: Call) -> Result:
    """Entry by entry, broadcasting."""
    operands = [(traced.fields, traced.shape) for traced in call.tensors]
    out = call.out[0] if isinstance(call.out, tuple) else call.out
    return merge(call, operands, out.dim()) if isinstance(out, Tensor) else ()


RULES["pliant.live"] = pointwise


@rule("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
      "kl_div", "soft_margin_loss", "poisson_nll_loss")  # fmt: skip
def loss(call: Call) -> Result:
    """Entry by entry, and then perhaps one number for all."""
    fields = merge(call, [(t.fields, t.shape) for t in call.tensors], max(len(t.shape) for t in call.tensors))
    return fields if call.out.dim() else ()


@rule("broadcast_tensors")
def broadcast(call: Call) -> Result:
    """Every tensor at the size of all."""
    fields = merge(call, [(t.fields, t.shape) for t in call.tensors], call.out[0].dim())
    return [fields for _ in call.out]


@rule("glu")
def gated(call: Call) -> Result:
    """The first half times the gate of the second half: the halves are tied."""
    source = call.tensors[0]
    dims = len(source.shape)
    dim = axis_of(call.arg("dim", -1), dims)
    half = source.shape[dim] // 2
    parts = []
    for begin in (0, half):
        cut = []
        for f in source.fields:
            small = compact(f.labels.narrow(dim, begin, half)) if dim in f.axes else f.labels
            if small.numel() == 1:
                call.labels.fix([small])  # a half of one channel: its value cannot change places with its gate
            else:
                cut.append(Field(small, f.soft))
        parts.append((call.labels.tidy(cut), call.out.shape))
    return merge(call, parts, dims)


def vector_at(traced: Traced | None, axis: int, dims: int) -> list[tuple[Fields, list[int]]]:
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
    vectors_at = [op for traced in call.tensors[1:] for op in vector_at(traced, min(1, dims - 1), dims)]
    return merge(call, [(source.fields, source.shape), *vectors_at], dims)


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> Result:
    """Affine parameters lie along the last axes; statistics run over what is kept."""
    source, affine = call.tensors[0], call.tensors[1:]
    last = range(len(source.shape) - len(call.arg("normalized_shape", [0])), len(source.shape))
    for axis in last:
        call.mix("mean", (source, axis))
    fields = tuple(call.labels.collapse(f) if len(f.axes) > 1 and set(f.axes) & set(last) else f for f in source.fields)
    return merge(call, [(fields, source.shape), *((t.fields, t.shape) for t in affine)], len(source.shape))


@rule("group_norm", "native_group_norm")
def group_norm(call: Call) -> Result:
    """A whole normalisation group lives or dies; where there is but one, or where it is asked for, its channels do."""
    source = call.tensors[0]
    dims, groups = len(source.shape), call.arg("num_groups", call.arg("group"))
    each = source.shape[1] // groups
    if groups == 1 or call.labels.inner == "channels":
        call.mix("mean", (source, 1))
    fields = []
    for f in call.labels.settle(source.fields):
        if f.axes == (1,) and each > 1 and groups > 1:
            joint = f.labels.reshape(groups, each)
            call.labels.tie(joint, joint[:1] if call.labels.inner == "channels" else joint[:, :1])
        fields.append(f)
    affine = [op for traced in call.tensors[1:] for op in vector_at(traced, 1, dims)]
    return merge(call, [(tuple(fields), source.shape), *affine], dims)


# -- reductions and indexing -----------------------------------------------------------------------------------------


def without(call: Call, fields: Fields, axes: Sequence[int]) -> Fields:
    """Fields after those that vary along `axes` were fixed."""
    call.labels.losses += any(len(f.axes) > 1 and call.labels.prefer(f.axes) in axes for f in fields)
    settled = [call.labels.collapse(f) if len(f.axes) > 1 and set(f.axes) & set(axes) else f for f in fields]
    call.labels.fix(f for f in settled if set(f.axes) & set(axes))
    return tuple(f for f in settled if not set(f.axes) & set(axes))


def _dims(call: Call, dims: int) -> list[int]:
    found = call.arg("dim", call.arg("dims"))
    if call.node.packet in ("aten.linalg_matrix_norm", "aten.nuclear_norm"):
        found = found or [-2, -1]
    if found is None or found == []:
        return list(range(dims))
    return [axis_of(d, dims) for d in (found if isinstance(found, list | tuple) else [found])]


_HOW = {"aten.mean": "mean", "aten.sum": "sum"} | dict.fromkeys(
    ("aten.amax", "aten.amin", "aten.max", "aten.min", "aten.any", "aten.all"), "max"
)
"""What a reduction does with the entries along an axis, as `Mix` says it."""


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "logsumexp", "prod", "any", "all", "nansum",
      "linalg_vector_norm", "var_mean", "std_mean", "median", "square_sum", "count_nonzero", "aminmax", "linalg_norm",
      "linalg_matrix_norm", "frobenius_norm", "nuclear_norm", "nanmean", "special_logsumexp")  # fmt: skip
def reduction(call: Call) -> Result:
    """The reduced axes go; a field that spans them and others keeps its outermost axis."""
    if len(call.tensors) > 1:
        return pointwise(call)  # max(a, b), min(a, b)
    source = call.tensors[0]
    dims = len(source.shape)
    gone = _dims(call, dims)
    for axis in gone:
        call.mix(_HOW.get(call.node.packet, "other"), (source, axis))
    fields = drop(call, source.fields, gone, call.arg("keepdim", False))
    return [fields for _ in call.out] if isinstance(call.out, tuple | list) else fields


def drop(call: Call, fields: Fields, gone: Sequence[int], keepdim: bool) -> Fields:
    """Fields after the entries along some axes became one: those that vary along them are no more."""
    results = []
    for f in fields:
        f = call.labels.collapse(f) if len(f.axes) > 1 and set(f.axes) & set(gone) else f
        if not set(f.axes) & set(gone):
            sizes = [size for axis, size in enumerate(f.labels.shape) if keepdim or axis not in gone]
            results.append(Field(f.labels.reshape(sizes), f.soft))
    return call.labels.tidy(results)


@rule("tril", "triu")
def triangle(call: Call) -> Result:
    """The last two axes are told apart by place."""
    dims = call.out.dim()
    return without(call, call.tensors[0].fields, [dims - 2, dims - 1])


@rule("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
      "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
      "max_pool2d_with_indices", "max_pool1d_with_indices", "upsample_nearest1d", "upsample_nearest2d",
      "upsample_bilinear2d", "upsample_linear1d", "upsample_bicubic2d", "upsample_nearest3d", "upsample_trilinear3d",
      "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "reflection_pad1d", "reflection_pad2d",
      "replication_pad1d", "replication_pad2d",
      "reflection_pad3d", "replication_pad3d", "max_pool3d_with_indices", "adaptive_max_pool3d", "_adaptive_avg_pool2d",
      "_adaptive_avg_pool3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact3d",
      "_upsample_bicubic2d_aa")  # fmt: skip
def spatial(call: Call) -> Result:
    """Leading axes pass, spatial axes are fixed (but for those that a pooling leaves alone)."""
    source = call.tensors[0]
    digits = [c for c in call.node.packet if c.isdigit()]
    count = int(digits[0]) if digits else len(source.shape) - 2
    for other in call.tensors[1:]:
        call.labels.fix(other.fields)
    first = len(source.shape) - count
    rest = without(call, source.fields, [first + i for i in range(count) if not _idle(call, i)])
    return [rest for _ in call.out] if isinstance(call.out, tuple | list) else rest


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sampled(call: Call) -> Result:
    """Channels pass; axis 0 (the batch, or batch times heads) is shared by the image and the grid."""
    source, grid = call.tensors[:2]
    dims = len(source.shape)
    rest = without(call, source.fields, range(2, dims))
    leading = without(call, grid.fields, range(1, dims))
    return merge(call, [(rest, call.out.shape), (leading, [grid.shape[0], *[1] * (dims - 1)])], dims)


def _idle(call: Call, place: int) -> bool:
    """Whether a pooling leaves one of its axes as it is."""
    sizes = [call.arg("kernel_size"), call.arg("stride") or 1, call.arg("padding", 0)]
    if "pool" not in call.node.packet or sizes[0] is None:
        return False
    return [size if isinstance(size, int) else size[place % len(size)] for size in sizes] == [1, 1, 0]


@rule("cat", "concat", "concatenate", "stack")
def concatenate(call: Call) -> Result:
    """Along the joined axis labels are strung together, on the other axes they are tied."""
    parts = call.tensors
    dims = call.out.dim()
    dim = axis_of(call.arg("dim", 0), dims)
    if call.node.packet == "aten.stack":
        shapes = [(*t.shape[:dim], 1, *t.shape[dim:]) for t in parts]
        groups = [[Field(f.labels.unsqueeze(dim), f.soft) for f in t.fields] for t in parts]
    else:
        parts = [t for t in parts if len(t.shape) == dims and t.shape[dim] > 0]  # what is empty ties nothing
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


def unknown_result(call: Call) -> Result:
    """No rule applies: everything the call touches becomes fixed."""
    for traced in call.tensors:
        call.labels.fix(traced.fields)
    return [() for _ in call.out] if isinstance(call.out, tuple | list) else ()
