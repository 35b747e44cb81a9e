"""Rules: which calls keep shells apart as they are, which are made to, and which cannot be."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pliant.elastic.onepass.places import Head, Join, Mix, Norm, Place, Step, Value
from pliant.graph import rules as labels
from pliant.graph.ir import argument
from pliant.graph.labels import IntArray

Judged = tuple[Step, Sequence[Value]]
Rule = Callable[[Place], Judged]

_CROSS = "an entry of one shell would depend on later shells"


def rule_of(place: Place) -> Rule:
    """The rule of a call that reads shells."""
    packet = place.node.packet
    if packet in _RULES:
        return _RULES[packet]
    found = labels.find_rule(place.node)
    if found in _BY_LABELS:
        return _BY_LABELS[found]
    return _unknown


def _unknown(place: Place) -> Judged:
    place.refuse("has no one-pass form", "use a layer that has one (linear, convolution, batch, layer or RMS norm, "
                 "attention, pooling, pointwise), or train with pliant.elastic")  # fmt: skip


def _as_it_is(place: Place, values: Sequence[Value] | None = None) -> Judged:
    """The call on the shells that are wanted; marks of its operands go on."""
    given = place.operands
    made = place.results() if values is None else values
    active = any(value.active for value in given)
    pooled, squeezed = any(v.pooled for v in given), any(v.squeezed for v in given)
    marked = [replace(v, active=active, pooled=v.pooled or pooled, squeezed=v.squeezed or squeezed) for v in made]
    return Step(place.node, shelled=True), marked


def _same(first: IntArray | None, second: IntArray | None) -> bool:
    return first is not None and second is not None and np.array_equal(first, second)


def _reads_weight(place: Place) -> bool:
    return any(value.whole for value in place.operands)


# -- entry by entry --------------------------------------------------------------------------------------------------


def _pointwise(place: Place) -> Judged:
    made = place.results()[0]
    _align(place, place.operands, made)
    if place.node.packet in ("aten.mul", "aten.multiply", "aten.mul_"):
        _no_squeeze(place)
    return _as_it_is(place)


def _align(place: Place, operands: Sequence[Value], made: Value) -> None:
    """Every operand, broadcast, has the result's shells."""
    if any(value.whole for value in operands):
        place.refuse("computes with a weight that has two elastic axes", "leave weights as they are stored")
    for value in operands:
        offset = len(made.shape) - len(value.shape)
        for axis, vector in value.axes.items():
            if not _same(vector, made.axes.get(axis + offset)):
                place.refuse(f"combines units of different shells: {_CROSS}", "freeze one of the two widths")
        for axis in made.axes:
            if axis >= offset and value.shape[axis - offset] > 1 and axis - offset not in value.axes:
                place.refuse("brings shells together with a value that has none", "freeze this width")


def _no_squeeze(place: Place) -> None:
    for gate in place.operands:
        for other in place.operands:
            if gate.squeezed and not other.squeezed and gate.axes and other.active and other.axes:
                place.refuse_squeeze()


def _channels(place: Place) -> Judged:
    """Batch norm, instance norm, prelu: a channel (axis 1) by itself, vectors laid along it."""
    x, made = place.operands[0], place.results()[0]
    for value in place.operands[1:]:
        if int(np.prod(value.shape)) > 1 and not _same(value.axes.get(0), x.axes.get(1)):
            place.refuse(f"lays a vector along other shells: {_CROSS}", "freeze this width")
    if set(x.axes) != set(made.axes) or (set(x.axes) - {1} and place.node.packet != "aten.prelu"):
        place.refuse("normalises over shells", "use batch norm over channels")
    return _as_it_is(place)


def _glu(place: Place) -> Judged:
    x, made = place.operands[0], place.results()[0]
    dim = argument(place.node, "dim", -1) % len(x.shape)
    if dim in x.axes and not all(_same(half, made.axes.get(dim)) for half in np.split(x.axes[dim], 2)):
        place.refuse(f"gates units by units of other shells: {_CROSS}", "freeze this width")
    return _as_it_is(place)


# -- moving entries --------------------------------------------------------------------------------------------------


_TURNS = ("aten.t", "aten.transpose", "aten.permute", "aten.numpy_T", "aten.contiguous", "aten.clone", "aten.alias",
          "aten.detach", "aten.to", "aten._to_copy")  # fmt: skip


def _moves(place: Place) -> Judged:
    """Labels say where every entry goes, and so which shell it is in."""
    if _reads_weight(place):
        return _turned(place)
    made = place.results()
    for value in made:
        if not value.axes:
            place.refuse("takes single units out of a width", "freeze this width")
    return _as_it_is(place)


def _turned(place: Place) -> Judged:
    """A weight with two elastic axes may be turned on its way to where it is used."""
    node, (made, *_) = place.node, place.results()
    value = place.operands[0]
    if node.packet not in _TURNS or value.origin is None:
        place.refuse("computes with a weight that has two elastic axes", "leave weights as they are stored")
    order = list(value.origin[1])
    if node.packet in ("aten.t", "aten.numpy_T"):
        order.reverse()
    elif node.packet == "aten.transpose":
        a, b = (argument(node, name) % len(order) for name in ("dim0", "dim1"))
        order[a], order[b] = order[b], order[a]
    elif node.packet == "aten.permute":
        order = [order[axis] for axis in argument(node, "dims")]
    return Step(node), [replace(made, active=False, origin=(value.origin[0], tuple(order)))]


def _rolled(place: Place) -> Judged:
    """Entries move along axes without shells."""
    x = place.operands[0]
    dims = argument(place.node, "dims", ())
    if not dims or {axis % len(x.shape) for axis in dims} & set(x.axes):
        place.refuse("moves units to other shells", "freeze this width")
    return _moves(place)


def _joined(place: Place) -> Judged:
    """Along the joined axis some parts may have no shells: nothing elastic is in them, so that they go with shell 1."""
    if _reads_weight(place):
        place.refuse("joins weights that have two elastic axes", "leave weights as they are stored")
    node, made = place.node, place.results()[0]
    parts = [ref.name for ref in argument(node, "tensors")]
    dim = argument(node, "dim", 0) % len(made.shape)
    if node.packet == "aten.stack":
        shifted = {a - (a > dim): v for a, v in made.axes.items() if a != dim}
        _align(place, place.operands, replace(made, axes=shifted, shape=place.operands[0].shape))
        return _as_it_is(place)
    for value in place.operands:
        if any(axis != dim and not _same(v, made.axes.get(axis)) for axis, v in value.axes.items()) or (
            dim in value.axes and dim not in made.axes
        ) or any(axis != dim and axis not in value.axes for axis in made.axes):  # fmt: skip
            place.refuse("joins units of different shells", "freeze this width")
    later = tuple(i for i, name in enumerate(parts) if dim in place.values[name].axes)
    step = Join(node, shelled=True, later=later if dim in made.axes else tuple(range(len(parts))))
    return step, _as_it_is(place)[1]


# -- reductions and positions ----------------------------------------------------------------------------------------


def _reduction(place: Place) -> Judged:
    """Sums, means and the like, along axes without shells."""
    if len(place.operands) > 1:
        return _pointwise(place)
    x, made = place.operands[0], place.results()
    dims = argument(place.node, "dim", argument(place.node, "dims"))
    gone = range(len(x.shape)) if dims in (None, []) else dims if isinstance(dims, list | tuple) else [dims]
    if {axis % len(x.shape) for axis in gone} & set(x.axes) or len(made[0].axes) != len(x.axes):
        what = place.node.packet.removeprefix("aten.")
        place.refuse(
            f"{what} over an elastic width reads all shells",
            "use nn.LayerNorm or nn.RMSNorm where it is a normalisation, else freeze this width",
        )
    return _as_it_is(place, _pooled(x, made))


def _pooled(x: Value, made: Sequence[Value]) -> list[Value]:
    """Mark results whose positions were averaged to one."""
    before = int(np.prod([n for axis, n in enumerate(x.shape) if axis and axis not in x.axes]))
    after = [int(np.prod([n for axis, n in enumerate(v.shape) if axis and axis not in v.axes])) for v in made]
    return [replace(v, pooled=n == 1 and before > 1) for v, n in zip(made, after, strict=True)]


def _spatial(place: Place) -> Judged:
    """Pooling, resizing, padding of positions."""
    x, made = place.operands[0], place.results()
    if any(set(x.axes) != set(v.axes) for v in made) or not all(
        v.shape[a] == x.shape[a] and _same(v.axes[a], x.axes[a]) for v in made for a in v.axes
    ):
        place.refuse("moves along an elastic width", "freeze this width")
    return _as_it_is(place, _pooled(x, made))


def _along(place: Place) -> Judged:
    """Softmax and running sums along an axis without shells."""
    x = place.operands[0]
    if argument(place.node, "dim") % len(x.shape) in x.axes:
        what = place.node.packet.removeprefix("aten.")
        place.refuse(f"{what} over an elastic width reads all shells", "freeze this width")
    return _as_it_is(place)


def _embedding(place: Place) -> Judged:
    weight, indices = place.value("weight"), place.value("indices")
    if weight is None or indices is None or indices.axes or set(weight.axes) != {1}:
        place.refuse("looks up elastic rows", "freeze this width")
    return _as_it_is(place)


# -- normalisation ---------------------------------------------------------------------------------------------------


def _layer_norm(place: Place) -> Judged:
    node, x = place.node, place.operands[0]
    last, (axis, into) = len(x.shape) - 1, next(iter(x.axes.items()), (-1, None))
    over = len(x.shape) - len(argument(node, "normalized_shape"))
    if into is None or axis < over:
        return _as_it_is(place)
    if over != last or len(x.axes) > 1:
        place.refuse("normalises over an elastic width and other axes together", "normalise over the width alone")
    for name in ("weight", "bias"):
        value = place.value(name)
        if value is not None and not _same(value.axes.get(0), into):
            place.refuse(f"lays its {name} along other shells", "freeze this width")
    eps, centred = argument(node, "eps", None if node.packet == "aten.rms_norm" else 1e-5), "rms" not in node.packet
    sizes = np.bincount(into)[1:]
    even = bool((np.diff(into) >= 0).all() and (sizes == sizes[0]).all())
    step = Norm(node, shelled=True, x=_name(place, "input"), weight=place.ref("weight"), bias=place.ref("bias"),
                eps=eps, centred=centred, even=even, into=into)  # fmt: skip
    return step, _as_it_is(place)[1]


def _name(place: Place, argument_name: str) -> str:
    found = place.ref(argument_name)
    if found is None:
        place.refuse(f"has no value for {argument_name}", "give it a tensor")
    return found


def _group_norm(place: Place) -> Judged:
    """Exact where every group of channels lies in one shell."""
    x = place.operands[0]
    groups = argument(place.node, "num_groups")
    rows = x.axes[1].reshape(groups, -1) if set(x.axes) == {1} else np.array([[1, 2]])
    if not bool((rows == rows[:, :1]).all()):
        place.refuse(
            "group normalisation across shells: its groups hold channels of several",
            "choose more groups, so that every one lies inside a shell, or use batch norm",
        )
    return _as_it_is(place)


# -- products --------------------------------------------------------------------------------------------------------


def _linear(place: Place) -> Judged:
    x = place.value("input")
    return _product(place, "input", "weight", "bias", (0, 1), -1 if x is None else len(x.shape) - 1)


def _convolution(place: Place) -> Judged:
    node = place.node
    x, weight = place.value("input"), place.value("weight")
    if x is None or weight is None or len(x.shape) != len(weight.shape):
        place.refuse("convolves without a batch", "give the network a batch")
    if argument(node, "groups", 1) == 1:
        return _product(place, "input", "weight", "bias", (1, 0) if "transpose" in node.packet else (0, 1), 1)
    made = place.results()[0]
    groups = argument(node, "groups")
    if set(x.axes) != {1} or set(made.axes) != {1} or set(weight.axes) != {0}:
        place.refuse("a grouped convolution whose groups are no units of its width", "freeze this width")
    ends = [vector.reshape(groups, -1) for vector in (x.axes[1], made.axes[1])]
    if bool((ends[0].max(1) > ends[1].min(1)).any()):
        place.refuse(f"a grouped convolution whose groups hold several shells: {_CROSS}", "use as many groups as "
                     "channels, or fewer shells")  # fmt: skip
    return _as_it_is(place)


def _matmul(place: Place) -> Judged:
    names = ("mat1", "mat2", "self") if place.node.packet == "aten.addmm" else ("self", "other", None)
    names = ("self", "mat2", None) if place.node.packet in ("aten.mm", "aten.bmm") else names
    x, weight = place.value(names[0] or ""), place.value(names[1] or "")
    if x is None or weight is None:
        return _unknown(place)
    if weight.whole or (weight.axes and not weight.active):
        if argument(place.node, "beta", 1) != 1 or argument(place.node, "alpha", 1) != 1 or len(weight.shape) != 2:
            return _unknown(place)
        return _product(place, names[0], names[1], names[2], (1, 0), len(x.shape) - 1)
    made = place.results()[0]
    for value, summed in ((x, -1), (weight, -2 if len(weight.shape) > 1 else -1)):
        offset = len(made.shape) - len(value.shape)
        for axis, vector in value.axes.items():
            if axis - len(value.shape) == summed or not _same(vector, made.axes.get(axis + offset)):
                place.refuse(f"multiplies along shells: {_CROSS}", "freeze this width")
        for axis in made.axes:
            own = axis - offset
            if 0 <= own < len(value.shape) - 2 and value.shape[own] > 1 and own not in value.axes:
                place.refuse("multiplies shells with a value that has none", "freeze this width")
    return _as_it_is(place)


def _product(place: Place, x_name: str | None, w_name: str | None, b_name: str | None, layout: tuple[int, int],
             axis: int) -> Judged:  # fmt: skip
    """A weight times an input: block-triangular, a head, or (where the input has no shells there) as it is."""
    node = place.node
    x, weight = place.value(x_name or ""), place.value(w_name or "")
    if x is None or weight is None:
        place.refuse("multiplies what is no value", "give it tensors")
    into, (made, *_) = x.axes.get(axis), place.results()
    if into is None or weight.active:
        if weight.active or weight.whole or (x.axes and weight.axes) or not set(x.axes) <= set(made.axes):
            place.refuse(f"reads shells along several axes: {_CROSS}", "freeze one of the widths")
        return _as_it_is(place)
    if not _same(weight.axes.get(layout[1]), into):
        place.refuse("reads shells with a weight that has others", "freeze this width")
    out = weight.axes.get(layout[0])
    names = {"x": place.ref(x_name or "") or "", "bias": None if b_name is None else place.ref(b_name)}
    if out is None:
        return _head(place, names["x"] or "", weight, names["bias"], layout, axis)
    if place.mixed(axis) or not _same(made.axes.get(axis), out):
        place.refuse("gives out units together with fixed entries that read all shells", "split it in two layers")
    values = _as_it_is(place)[1]
    step = Mix(node, shelled=True, x=names["x"] or "", weight=place.ref(w_name or "") or "", bias=names["bias"],
               axis=axis, layout=layout, into=into, out_of=out)  # fmt: skip
    return step, [replace(value, squeezed=x.pooled or x.squeezed) for value in values]


def _head(place: Place, x: str, weight: Value, bias: str | None, layout: tuple[int, int], axis: int) -> Judged:
    """A layer of fixed size reads every shell: one for each width."""
    held = None if bias is None else place.values[bias]
    told = "is a head whose weight is not used as it is stored"
    if weight.origin is None or weight.origin[1] != tuple(range(len(weight.shape))):
        place.refuse(told, "use nn.Linear or a convolution for it")
    if held is not None and (held.origin is None or held.axes):
        place.refuse(told.replace("weight", "bias"), "use nn.Linear or a convolution for it")
    step = Head(place.node, each=True, x=x, weight=weight.origin[0],
                bias=None if held is None or held.origin is None else held.origin[0], axis=axis,
                layout=layout, into=place.values[x].axes[axis])  # fmt: skip
    pooled = place.values[x].pooled
    return step, [Value(value.shape, each=True, pooled=pooled) for value in place.results()]


def _attention(place: Place) -> Judged:
    """Heads are shells: queries, keys and values of a head lie in the same one, or keys and values in an earlier."""
    made = place.results()[0]
    dims = len(made.shape)
    for value in place.operands:
        offset = dims - len(value.shape)
        for axis, vector in value.axes.items():
            own = made.axes.get(axis + offset)
            per = 0 if own is None else len(own) // len(vector)
            if axis >= len(value.shape) - 2 or own is None or not _same(np.repeat(vector, per), own):
                place.refuse(f"attention between shells: {_CROSS}", "let shells be whole heads")
    for name in ("query", "key", "value"):
        value_ = place.value(name)
        if value_ is None or len(value_.axes) != len(made.axes):
            place.refuse("attention of shells to what has none", "freeze the heads")
    return _as_it_is(place)


_BY_LABELS: dict[labels.Rule | None, Rule] = {
    labels.pointwise: _pointwise, labels.shape: _moves, labels.spread: _moves, labels.reduction: _reduction,
    labels.spatial: _spatial, labels.concatenate: _joined, labels.gated: _glu,
}  # fmt: skip
_RULES: dict[str, Rule] = {
    "operator.getitem": _moves, "aten.sym_size": _as_it_is, "aten.linear": _linear, "aten.addmm": _matmul,
    "aten.matmul": _matmul, "aten.mm": _matmul, "aten.bmm": _matmul, "aten.embedding": _embedding,
    "aten.layer_norm": _layer_norm, "aten.rms_norm": _layer_norm, "aten.group_norm": _group_norm,
    "aten.batch_norm": _channels, "aten.instance_norm": _channels, "aten.prelu": _channels,
    "aten.roll": _rolled, "aten.softmax": _along, "aten.log_softmax": _along, "aten.cumsum": _along,
    "aten.constant_pad_nd": _spatial, "aten.pad": _spatial, "aten.scaled_dot_product_attention": _attention,
}  # fmt: skip
_RULES |= {
    f"aten.{name}": _moves
    for name in ("dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "to", "_to_copy", "type_as",
                 "lift_fresh", "lift_fresh_copy", "zeros_like", "ones_like", "full_like", "float", "half",
                 "log_sigmoid")
}  # fmt: skip
_RULES |= {
    f"aten.{name}": _convolution
    for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
}
