"""The rules of operators that multiply: matrix products, convolutions, attention, recurrent layers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.graph.labels import Field, Traced, along, vectors
from pliant.graph.rules import Call, Fields, Result, merge, rule, unknown_result, vector_at


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
    return _bias(call, fields, call.arg("bias"), call.out)


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
        k, v = (_repeated(call, traced, axis, times) for traced in (k, v))
    lead = [f"b{i}" for i in range(len(q.shape) - 2)]
    operands = [(q, [*lead, "l", "d"]), (k, [*lead, "s", "d"]), (v, [*lead, "s", "e"])]
    mask = call.arg("attn_mask")
    if isinstance(mask, Traced) and isinstance(mask.value, Tensor):
        letters = [*lead, "l", "s"][-len(mask.shape) :]
        operands.append((mask, [f"m{i}" if size == 1 else letters[i] for i, size in enumerate(mask.shape)]))
    ordered_axes = ["l", "s"] if call.arg("is_causal", False) else []
    fields = contract(call, operands, [*lead, "l", "e"], fixed=ordered_axes, per_output=True)
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
            if axis in labelled or not isinstance(found.get(letter), Tensor):
                found[letter] = labelled.get(axis, traced.shape[axis])
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


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(call: Call) -> Result:
    """`v * g / norm(v)`: g has one entry for each index of the kept axis."""
    v, g = call.tensors[:2]
    fields = merge(call, [(v.fields, v.shape), (g.fields, g.shape)], len(v.shape))
    return [fields, ()] if isinstance(call.out, tuple | list) else fields
