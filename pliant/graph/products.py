"""The rules of operators that multiply: matrix products, convolutions, attention, recurrent layers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.graph.ir import Ref
from pliant.graph.labels import Field, Traced, along, vectors
from pliant.graph.rules import Call, Fields, Result, merge, rule, vector_at, without


def contract(call: Call, operands: Sequence[tuple[Traced, Sequence[str]]], out: Sequence[str], *,
             fixed: Sequence[str] = (), means: Sequence[str] = (), per_output: bool = False) -> Fields:  # fmt: skip
    """Ties by letters, as in einsum: axes with one letter are one axis.

    Args:
        call: the call, for its label store and cost.
        operands: tensors with a letter for each axis; an axis of size 1 that broadcasts must have a letter of its own.
        out: letters of the result.
        fixed: letters whose axes cannot shrink (kernel taps).
        means: letters that are summed with weights that add up to one.
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
    for letter in found.keys() - set(out):
        shared = [(traced, letters.index(letter)) for traced, letters in operands if letter in letters]
        call.mix("mean" if letter in means else "sum", *shared)
    if not per_output:
        call.cost(1.0, *(found.get(letter, size) for letter, size in sizes.items()))
    return tuple(Field(along(found[letter], axis, len(out))) for axis, letter in enumerate(out) if letter in found)


def add_bias(call: Call, fields: Fields, bias: Any, out: Tensor) -> Fields:
    """Fields of a result after something was added to it that may be absent."""
    if not isinstance(bias, Traced):
        return fields
    return merge(call, [(fields, tuple(out.shape)), (bias.fields, bias.shape)], out.dim())


@rule("linear")
def linear(call: Call) -> Result:
    """`x[..., i] w[o, i] + b[o]`."""
    x, w = call.args[0], call.args[1]
    lead = [f"b{i}" for i in range(len(x.shape) - 1)]
    fields = contract(call, [(x, [*lead, "i"]), (w, ["o", "i"])], [*lead, "o"])
    return add_bias(call, fields, call.arg("bias"), call.out)


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(call: Call) -> Result:
    """`a[..., n, k] b[..., k, m]` with broadcast leading axes."""
    return matmul_of(call, call.tensors[0], call.tensors[1])


def matmul_of(call: Call, a: Traced, b: Traced, *, free: bool = False) -> Fields:
    """`a[..., n, k] b[..., k, m]` with broadcast leading axes; it costs nothing where it is `free`."""
    rows = ["n", "k"] if len(a.shape) > 1 else ["k"]
    columns = ["k", "m"] if len(b.shape) > 1 else ["k"]
    count = max(len(a.shape) - len(rows), len(b.shape) - len(columns))

    def lead(traced: Traced, own: int, side: str) -> list[str]:
        n = len(traced.shape) - own
        return [f"b{count - n + i}" if traced.shape[i] > 1 else f"{side}{i}" for i in range(n)]

    out = [f"b{i}" for i in range(count)] + rows[:-1] + columns[1:]
    first, second = lead(a, len(rows), "x") + rows, lead(b, len(columns), "y") + columns
    return contract(call, [(a, first), (b, second)], out, per_output=free)


@rule("addmm", "baddbmm", "addmv", "addbmm")
def addmatmul_of(call: Call) -> Result:
    """`bias + a b`."""
    bias, a, b = call.tensors[:3]
    return add_bias(call, matmul_of(call, a, b), bias, call.out)


@rule("dot", "vdot")
def dot(call: Call) -> Result:
    """`sum of a b`."""
    return contract(call, [(traced, ["i"]) for traced in call.tensors], [])


@rule("bilinear")
def bilinear(call: Call) -> Result:
    """`x1[..., i] w[o, i, j] x2[..., j] + b[o]`."""
    x, y, w = call.tensors[:3]
    lead = [f"b{i}" for i in range(len(x.shape) - 1)]
    fields = contract(call, [(x, [*lead, "i"]), (y, [*lead, "j"]), (w, ["o", "i", "j"])], [*lead, "o"])
    return add_bias(call, fields, call.arg("bias"), call.out)


@rule("einsum")
def einsum(call: Call) -> Result:
    """Letters as given."""
    equation, parts = str(call.args[0]).replace(" ", ""), call.tensors
    left, arrow, right = equation.partition("->")
    texts = left.split(",")
    if not arrow:
        right = "".join(sorted(c for c in set(left) - set(",.") if left.count(c) == 1))
        right = "..." + right if "." in left else right
    lead = max(len(p.shape) - len(text.replace("...", "")) if "." in text else 0 for p, text in zip(parts, texts))

    def full(text: str, shape: Sequence[int]) -> list[str]:
        head, dots, tail = text.partition("...")
        own = len(shape) - len(head) - len(tail) if dots else 0
        letters = [*head, *(f"_{lead - own + i}" for i in range(own)), *tail]
        # an ellipsis broadcasts: an axis of size 1 has nothing to tie
        return [f"{x}:1" if x[0] == "_" and size == 1 else x for x, size in zip(letters, shape)]

    operands = [(p, full(text, p.shape)) for p, text in zip(parts, texts, strict=True)]
    out = full(right, call.out.shape)
    fields = contract(call, operands, out, per_output=True)
    sizes, done = _sizes(operands, call), set(operands[0][1])
    for i, (_, letters) in enumerate(operands[1:], 1):  # pairwise from the left, as torch does
        both, later = {*done, *letters}, {letter for _, others in operands[i + 1 :] for letter in others} | set(out)
        if both - later:  # else nothing is summed
            call.cost(1.0, *(sizes[letter] for letter in sorted(both)))
        done = both & later
    return fields


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Result:
    """`softmax(q k' + mask) v` over the last two axes; leading axes (batch, heads) are shared."""
    q, k, v = call.tensors[:3]
    if call.arg("enable_gqa", False):
        times = q.shape[-3] // k.shape[-3]
        axis = len(k.shape) - 3
        if k.shape[-3] > 1:  # a single key-value head broadcasts
            k, v = (_repeated(call, traced, axis, times) for traced in (k, v))
    lead = [f"b{i}" for i in range(len(q.shape) - 2)]
    operands = [(q, [*lead, "l", "d"]), (k, [*lead, "s", "d"]), (v, [*lead, "s", "e"])]
    mask = call.arg("attn_mask")
    if isinstance(mask, Traced) and isinstance(mask.value, Tensor):
        letters = [*lead, "l", "s"][-len(mask.shape) :]
        operands.append((mask, [f"m{i}" if size == 1 else letters[i] for i, size in enumerate(mask.shape)]))
    ordered_axes = ["l", "s"] if call.arg("is_causal", False) else []
    fields = contract(call, operands, [*lead, "l", "e"], fixed=ordered_axes, means=["s"], per_output=True)
    sizes = _sizes([(q, operands[0][1]), (k, operands[1][1]), (v, operands[2][1])], call)
    for inner in ("d", "e"):  # q k', then its product with v
        call.cost(1.0, *(sizes[letter] for letter in (*lead, "l", "s", inner)))
    return fields


def _sizes(operands: Sequence[tuple[Traced, Sequence[str]]], call: Call) -> dict[str, Tensor | int]:
    """Labels of every letter, or its plain size where it carries none."""
    found: dict[str, Tensor | int] = {}
    for traced, letters in operands:
        labelled = vectors(call.labels.settle(traced.fields))
        for axis, letter in enumerate(letters):
            known = found.get(letter, 1)
            if axis in labelled:
                found[letter] = labelled[axis]
            elif not isinstance(known, Tensor):
                found[letter] = max(known, traced.shape[axis])
    return found


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


@rule("torchvision.deform_conv2d")
def deformed(call: Call) -> Result:
    """A convolution whose taps are moved by offsets, which may be those of groups of input channels."""
    several = call.arg("offset_groups", 1) > 1
    call.labels.fix(f for t in [*call.args[2:4], *call.args[:several]] for f in t.fields)
    return _convolution(call, out_axis=0, in_axis=1)


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
        if not _each_place_alone(call, w):
            call.labels.fix(f for f in call.labels.settle(x.fields) if f.axes[0] > channel)
        fields = contract(
            call, [(x, [*lead, "c", *space]), (w, weight)], [*lead, "o", *space], fixed=taps, per_output=True
        )
        fields = tuple(f for f in fields if f.axes[0] <= channel or _each_place_alone(call, w))
        inner: Tensor | int = vectors(call.labels.settle(x.fields)).get(channel, x.shape[channel])
    elif (call.labels.inner == "channels" or isinstance(call.raw("groups"), Ref)) and x.shape[channel] > groups:
        fields, inner = _alike(call, channel, out_axis)
    else:
        fields = _grouped(call, x, w, channel, groups)
        inner = x.shape[channel] // groups
    outer = vectors(fields).get(channel, call.out.shape[channel])
    spatial = [vectors(fields).get(channel + 1 + i, size)
               for i, size in enumerate((x if out_axis else Traced(call.out)).shape[channel + 1 :])]  # fmt: skip
    lead_sizes = [vectors(fields).get(axis, size) for axis, size in enumerate(call.out.shape[:channel])]
    call.cost(1.0, *lead_sizes, outer, inner, math.prod(w.shape[2:]), *spatial)
    return _biased_channel(call, fields, channel)


def _each_place_alone(call: Call, w: Traced) -> bool:
    """Whether a convolution is a linear map at each place, so that places may go."""
    stride, padding = call.arg("stride", 1), call.arg("padding", 0)
    steps, pads = ([each] if isinstance(each, int | str) else each for each in (stride, padding))
    whole = all(size == 1 for size in w.shape[2:])
    return whole and all(step == 1 for step in steps) and all(pad in (0, "same", "valid") for pad in pads)


def _biased_channel(call: Call, fields: Fields, channel: int) -> Fields:
    bias = vector_at(call.arg("bias"), channel, call.out.dim())
    size = [s if a == channel else 1 for a, s in enumerate(call.out.shape)]
    return merge(call, [(fields, size), *bias], call.out.dim()) if bias else fields


def _grouped(call: Call, x: Traced, w: Traced, channel: int, groups: int) -> Fields:
    """Channels as `[groups, each]`: labels within a group are tied, groups of input, weight and result are one axis."""
    labels = call.labels
    result = call.out.shape[channel]
    unit = None
    weight = vectors(labels.settle(w.fields))
    source = vectors(labels.settle(x.fields))
    labels.fix(vector for axis, vector in source.items() if axis > channel)
    labels.fix(vector for axis, vector in weight.items() if axis != 0)
    rows = tuple(Field(along(vector, axis, call.out.dim())) for axis, vector in source.items() if axis < channel)
    pieces = [source.get(channel), weight.get(0)]
    if any(piece is None for piece in pieces):
        labels.fix(piece for piece in pieces if piece is not None)
        return rows
    for piece in pieces:
        joint = piece.reshape(groups, -1)  # type: ignore[union-attr]
        labels.tie(joint, joint[:, :1])
        if unit is None:
            unit = joint[:, 0]
        else:
            labels.tie(unit, joint[:, 0])
    vector = torch.as_tensor(unit).repeat_interleave(result // groups)
    return (*rows, Field(along(vector, channel, call.out.dim())))


def _alike(call: Call, channel: int, out_axis: int) -> tuple[Fields, Tensor | int]:
    """The same channels go from all groups; the fields of the result and what each output channel reads.

    The groups may be samples, each with its own weights. The weight is `[groups * o, i]`, or transposed
    `[groups * i, o]`: channels of the result and of the input are each tied over the groups.
    """
    labels, (x, w), groups = call.labels, call.tensors[:2], call.arg("groups", 1)
    source, weight = vectors(labels.settle(x.fields)), vectors(labels.settle(w.fields))
    labels.fix(vector for axis, vector in source.items() if axis != channel)
    labels.fix(vector for axis, vector in weight.items() if axis > 1)
    each, made = x.shape[channel] // groups, call.out.shape[channel] // groups
    read = [piece.reshape(-1, each) for piece in (source.get(channel), weight.get(1 - out_axis)) if piece is not None]
    for piece in read:
        labels.tie(piece, read[0][:1])
    if len(read) < 2:
        labels.fix(read)
    inner: Tensor | int = read[0][0] if len(read) == 2 else each
    if isinstance(inner, Tensor):
        call.mix("sum", (x, channel), (w, 1 - out_axis))
    if out_axis not in weight or made == 1:  # one channel a group cannot go
        labels.fix(vector for axis, vector in weight.items() if axis == out_axis)
        return (), inner
    result = weight[out_axis].reshape(-1, made)
    labels.tie(result, result[:1])
    return (Field(along(result[:1].expand(groups, -1).reshape(-1), channel, call.out.dim())),), inner


# -- recurrent layers ------------------------------------------------------------------------------------------------


_GATES = {"lstm": 4, "gru": 3}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> Result:
    """Gates `[gates * H, ...]` share the H units; H is one axis over layers, directions and initial states.

    In a projected LSTM, H is fixed (torch tells it by H from the size of its output) and the output bends.
    """
    x, hidden, weights = call.args[0], call.arg("hx"), call.arg("params")
    layers, directions = call.arg("num_layers"), 2 if call.arg("bidirectional") else 1
    each = len(weights) // (layers * directions)
    projected = each == (5 if call.arg("has_biases") else 3)
    unit = call.labels.fresh(weights[1].shape[1])
    last = len(x.shape) - 1
    entry = vectors(_along_last(call, x)).get(last)
    steps = math.prod(x.shape[:-1])
    for layer in range(layers):
        inputs = entry if layer == 0 else unit.repeat(directions)
        for direction in range(directions):
            block = weights[(layer * directions + direction) * each :][:each]
            _tie_gates(call, block, unit, inputs, projected)
            call.mix("sum", (block[0], 1), *([(x, last)] if layer == 0 else []))
            size = weights[0].shape[0] // _gates(call) if projected else unit
            call.cost(steps * _gates(call), size, inputs if inputs is not None else x.shape[-1])
    for i, state in enumerate(hidden if isinstance(hidden, list) else [hidden]):
        _along_last(call, state)
        _tie_axis(call, state, len(state.shape) - 1, None if projected and i else unit)
    found: list[Fields] = []
    for i, out in enumerate(call.out):
        vector = unit.repeat(directions if i == 0 else 1)
        found.append(() if projected and i == 2 else (Field(along(vector, out.dim() - 1, out.dim())),))
    return found


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(call: Call) -> Result:
    """One step of `recurrent`."""
    x, hidden, *block = call.args
    unit, last = call.labels.fresh(block[1].shape[1]), len(x.shape) - 1
    inputs = vectors(_along_last(call, x)).get(last)
    _tie_gates(call, [w for w in block if isinstance(w, Traced)], unit, inputs, False)
    call.mix("sum", (block[0], 1), (x, last))
    call.cost(math.prod(x.shape[:-1]) * _gates(call), unit, inputs if inputs is not None else x.shape[-1])
    for state in hidden if isinstance(hidden, list) else [hidden]:
        _along_last(call, state)
        _tie_axis(call, state, last, unit)
    fields = (Field(along(unit, last, last + 1)),)
    return [fields for _ in call.out] if isinstance(call.out, tuple | list) else fields


def _gates(call: Call) -> int:
    return _GATES.get(call.node.packet.removeprefix("aten.").removesuffix("_cell"), 1)


def _along_last(call: Call, traced: Traced) -> Fields:
    """The fields of a value after all axes but its last one were fixed."""
    return without(call, call.labels.settle(traced.fields), range(len(traced.shape) - 1))


def _tie_axis(call: Call, traced: Traced, axis: int, labels: Tensor | None) -> None:
    """An axis gets these labels, or is fixed."""
    found = vectors(call.labels.settle(traced.fields)).get(axis)
    if found is not None and labels is not None:
        call.labels.tie(found, labels)
    elif found is not None or (labels is not None and traced.shape[axis] > 1):
        call.labels.fix([v for v in (found, labels) if v is not None])


def _tie_gates(call: Call, block: Sequence[Traced], unit: Tensor, inputs: Tensor | None, projected: bool) -> None:
    """Weights `w_ih [gates*H, I]`, `w_hh [gates*H, P]`, biases `[gates*H]` and `w_hr [P, H]`; P is H without `w_hr`."""
    rows = None if projected else unit.repeat(_gates(call))
    for weight in block[: len(block) - projected]:
        _tie_axis(call, weight, 0, rows)
    _tie_axis(call, block[0], 1, inputs)
    _tie_axis(call, block[1], 1, unit)
    call.mix("sum", (block[1], 1))
    size = block[0].shape[0] // _gates(call) if projected else unit
    call.cost(math.prod(call.args[0].shape[:-1]) * _gates(call), size, unit)
    if projected:
        _tie_axis(call, block[-1], 0, unit)
        _tie_axis(call, block[-1], 1, None)
        call.cost(math.prod(call.args[0].shape[:-1]), size, unit)


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call) -> Result:
    """`v * g / norm(v)`: g has one entry for each index of the kept axis."""
    v, g = call.tensors[:2]
    fields = merge(call, [(v.fields, v.shape), (g.fields, g.shape)], len(v.shape))
    for axis in (a for a, size in enumerate(g.shape) if size == 1):
        call.mix("other", (v, axis))
    return [fields, ()] if isinstance(call.out, tuple | list) else fields
