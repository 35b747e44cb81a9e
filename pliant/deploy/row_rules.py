"""How single ONNX operators run on many rows at once: every function writes what one node becomes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import numpy_helper

from pliant.deploy.row_graph import NoRule, Widened

_ELEMENTWISE = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "Mod",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Greater",
        "Less",
        "GreaterOrEqual",
        "LessOrEqual",
        "Where",
        "Max",
        "Min",
        "Mean",
        "Sum",
        "PRelu",
        "BitShift",
        "BitwiseAnd",
        "BitwiseOr",
    ]
)
_ONE_INPUT = frozenset(
    [
        "Abs",
        "Acos",
        "Asin",
        "Atan",
        "Ceil",
        "Cos",
        "Cosh",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tan",
        "Tanh",
        "Cast",
        "Celu",
        "Dropout",
        "Mish",
        "ThresholdedRelu",
        "Clip",
        "CastLike",
    ]
)
_ALONG_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LayerNormalization": -1, "ArgMax": 0, "ArgMin": 0}
_REDUCTIONS = frozenset(
    [
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceSumSquare",
        "ReduceLogSum",
    ]
)
_IMAGES = frozenset(
    [
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "BatchNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LRN",
        "DepthToSpace",
        "SpaceToDepth",
    ]
)


def _elementwise(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    rank = max(len(w.shape(name)) for name in node.input if name)
    w.again(node, [w.aligned(name, rank) for name in node.input])


def _pointwise(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    if any(name in w.batched for name in list(node.input)[1:]):
        raise NoRule(f"{node.op_type} with bounds that follow from the row")
    w.again(node, list(node.input))


def _along(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    axis = attributes.get("axis", _ALONG_AXIS[node.op_type])
    w.again(node, list(node.input), axis=axis + 1 if axis >= 0 else axis)


def _reduced(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    rank = len(w.shape(node.input[0]))
    axes = attributes.get("axes")
    moved = [axis + 1 if axis >= 0 else axis for axis in (axes if axes is not None else range(rank))]
    if not rank:
        raise NoRule(f"{node.op_type} of a number")
    w.again(node, list(node.input), axes=moved)


def _summed(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    rank = len(w.shape(node.input[0]))
    given = len(node.input) > 1 and node.input[1]
    axes = [int(axis) for axis in w.value(node.input[1])] if given else []
    if not axes and attributes.get("noop_with_empty_axes"):
        w.again(node, list(node.input))
        return
    moved = [axis + 1 if axis >= 0 else axis for axis in (axes or range(rank))]
    if not moved:
        raise NoRule("ReduceSum of a number")
    w.again(node, [node.input[0], w.constant(moved)])


def _matmul(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    one, other = node.input
    ranks = [len(w.shape(name)) for name in (one, other)]
    if min(ranks) < 2:
        _vectors(w, node, ranks)
        return
    rank = max(ranks)
    w.again(node, [w.aligned(one, rank), w.aligned(other, rank)])


def _vectors(w: Widened, node: Any, ranks: list[int]) -> None:
    """A product with a vector: it is made a matrix for the while."""
    one, other = (w.spread(name) for name in node.input)
    rank = max(*ranks, 2)
    shapes = [w.shape(name) for name in node.input]
    left = [1, shapes[0][0]] if ranks[0] == 1 else shapes[0]
    right = [shapes[1][0], 1] if ranks[1] == 1 else shapes[1]
    if ranks[0] == 1:
        one = w.reshape(one, [0, *[1] * (rank - 2), *left])
    if ranks[1] == 1:
        other = w.reshape(other, [0, *[1] * (rank - 2), *right])
    product = w.emit("MatMul", [one, other])
    w.reshape(product, [-1, *w.shape(node.output[0])], node.output[0])


def _gemm(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    a, b = node.input[0], node.input[1]
    shapes = [w.shape(a), w.shape(b)]
    if a in w.batched and b not in w.batched and not attributes.get("transA") and shapes[0][0] == 1:
        c = list(node.input[2:])
        if not (c and c[0] in w.batched):
            flat = w.reshape(a, [-1, shapes[0][1]])
            made = w.name()
            w.again(node, [flat, b, *c], [made])
            w.reshape(made, [-1, *w.shape(node.output[0])], node.output[0])
            return
    left, right = a, b
    for flag, side in (("transA", 0), ("transB", 1)):
        if attributes.get(flag):
            name = (left, right)[side]
            turned = w.emit("Transpose", [name], perm=[0, 2, 1] if (a, b)[side] in w.batched else [1, 0])
            left, right = (turned, right) if side == 0 else (left, turned)
    made = w.emit("MatMul", [left, right])
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        raise NoRule("Gemm with factors")
    if len(node.input) > 2 and node.input[2]:
        w.emit("Add", [made, w.aligned(node.input[2], 2)], list(node.output))
    else:
        w.emit("Identity", [made], list(node.output))


def _image(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    """The rows become a part of the batch, which axis 0 of the single block is."""
    if any(name in w.batched for name in list(node.input)[1:]):
        raise NoRule(f"{node.op_type} with weights that follow from the row")
    if len(node.output) > 1 and any(list(node.output)[1:]):
        raise NoRule(f"{node.op_type} with several outputs")
    shape = w.shape(node.input[0])
    flat = w.reshape(node.input[0], [-1, *shape[1:]])
    made = w.name()
    w.again(node, [flat, *list(node.input)[1:]], [made])
    w.reshape(made, [-1, *w.shape(node.output[0])], node.output[0])


def _resize(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    shape, out = w.shape(node.input[0]), w.shape(node.output[0])
    if shape[:1] != out[:1] or attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
        raise NoRule("Resize of the first axis")
    scales = [new / old for new, old in zip(out, shape, strict=True)]
    name = w.name()
    w.extra.append(numpy_helper.from_array(np.asarray(scales, dtype=np.float32), name))
    flat = w.reshape(node.input[0], [-1, *shape[1:]])
    made = w.name()
    w.again(node, [flat, "", name], [made])
    w.reshape(made, [-1, *out], node.output[0])


def _reshape(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    w.reshape(node.input[0], [-1, *w.shape(node.output[0])], node.output[0])


def _transpose(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    rank = len(w.shape(node.input[0]))
    perm = attributes.get("perm", list(range(rank))[::-1])
    w.again(node, list(node.input), perm=[0, *[axis + 1 for axis in perm]])


def _concat(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    axis = attributes["axis"]
    rank = len(w.shape(node.output[0]))
    like = next(name for name in node.input if name in w.batched)
    parts = []
    for name in node.input:
        if name in w.batched:
            parts.append(name)
            continue
        rows = w.emit("Slice", [w.emit("Shape", [like]), w.constant([0]), w.constant([1])])
        sizes = w.emit("Concat", [rows, w.constant([1] * rank)], axis=0)
        parts.append(w.emit("Expand", [w.spread(name), sizes]))
    w.again(node, parts, axis=axis + 1 if axis >= 0 else axis)


def _sliced(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    starts = w.value(node.input[1])
    axes = w.value(node.input[3]) if len(node.input) > 3 and node.input[3] else np.arange(len(starts))
    moved = [int(axis) + 1 if axis >= 0 else int(axis) for axis in axes]
    w.again(node, [*list(node.input)[:3], w.constant(moved), *list(node.input)[4:]])


def _split(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    axis = attributes.get("axis", 0)
    w.again(node, list(node.input), axis=axis + 1 if axis >= 0 else axis)


def _gathered(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    data, index = node.input
    axis = attributes.get("axis", 0) % len(w.shape(data))
    if index not in w.batched:
        w.again(node, [data, index], axis=axis + 1)
    elif data not in w.batched and axis == 0:
        w.again(node, [data, index], axis=0)
    else:
        _gathered_each(w, node, axis)


def _gathered_each(w: Widened, node: Any, axis: int) -> None:
    """Every row has its own index (a single one) into its own data, or into data all rows share."""
    data, index = node.input
    if int(np.prod(w.shape(index))) != 1:
        raise NoRule("Gather of several places that follow from the row")
    shape = w.shape(data)
    own = data in w.batched
    flat = w.reshape(index, [-1, *[1] * len(shape)])
    if not own:
        rank, perm = len(shape), [axis, *[n for n in range(len(shape)) if n != axis]]
        turned = w.emit("Transpose", [data], perm=perm)
        found = w.emit("Gather", [turned, w.reshape(index, [-1])], axis=0)
        del rank
        w.reshape(found, [-1, *w.shape(node.output[0])], node.output[0])
        return
    sizes = [1 if n == axis else size for n, size in enumerate(shape)]
    wide = w.emit("Expand", [flat, w.constant([1, *sizes])])
    limit = w.constant(shape[axis])
    wide = w.emit("Where", [w.emit("Less", [wide, w.constant(0)]), w.emit("Add", [wide, limit]), wide])
    found = w.emit("GatherElements", [data, wide], axis=axis + 1)
    w.reshape(found, [-1, *w.shape(node.output[0])], node.output[0])


def _expanded(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    sizes = w.shape(node.output[0])
    w.emit("Expand", [w.aligned(node.input[0], len(sizes)), w.constant([1, *sizes])], list(node.output))


def _padded(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    pads = [int(pad) for pad in w.value(node.input[1])]
    half = len(pads) // 2
    w.again(node, [node.input[0], w.constant([0, *pads[:half], 0, *pads[half:]]), *list(node.input)[2:3]])


def _cumulated(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    axis = int(w.value(node.input[1]))
    w.again(node, [node.input[0], w.constant(axis + 1 if axis >= 0 else axis)])


def _topk(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    if node.input[1] in w.batched:
        raise NoRule("TopK of a number that follows from the row")
    axis = attributes.get("axis", -1)
    w.again(node, list(node.input), axis=axis + 1 if axis >= 0 else axis)


def _elements(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    axis = attributes.get("axis", 0)
    if not all(name in w.batched for name in node.input):
        raise NoRule(f"{node.op_type} between rows and constants")
    w.again(node, list(node.input), axis=axis + 1 if axis >= 0 else axis)


def _recurrent(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    """[T, 1, I] of every row side by side: [T, N, I]."""
    names = list(node.input) + [""] * (8 - len(node.input))
    shape = w.shape(names[0])
    if shape[1] != 1 or attributes.get("layout", 0) or names[4]:
        raise NoRule(f"{node.op_type} over a batch of its own")
    if any(name in w.batched for name in (names[1], names[2], names[3], names[7])):
        raise NoRule(f"{node.op_type} with weights that follow from the row")

    like = next(name for name in node.input if name in w.batched)
    rows = w.emit("Slice", [w.emit("Shape", [like]), w.constant([0]), w.constant([1])])

    def beside(name: str) -> str:
        if not name:
            return ""
        size = w.shape(name)
        if name not in w.batched:
            sizes = w.emit("Concat", [w.constant([size[0]]), rows, w.constant([size[2]])], axis=0)
            return w.emit("Expand", [name, sizes])
        return w.emit("Transpose", [w.reshape(name, [-1, size[0], size[2]])], perm=[1, 0, 2])

    names[0], names[5], names[6] = beside(names[0]), beside(names[5]), beside(names[6])
    while names and not names[-1]:
        names.pop()
    made = [w.name() if name else "" for name in node.output]
    w.again(node, names, made)
    for number, (new, old) in enumerate(zip(made, node.output, strict=True)):
        if old:
            perm = [2, 0, 1, 3] if number == 0 else [1, 0, 2]
            w.reshape(w.emit("Transpose", [new], perm=perm), [-1, *w.shape(old)], old)


def _flat(w: Widened, node: Any, attributes: dict[str, Any]) -> None:
    _reshape(w, node, attributes)


RULES: dict[str, Callable[[Widened, Any, dict[str, Any]], None]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise), **dict.fromkeys(_ONE_INPUT, _pointwise),
    **dict.fromkeys(_ALONG_AXIS, _along), **dict.fromkeys(_REDUCTIONS, _reduced), **dict.fromkeys(_IMAGES, _image),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _reshape), "ReduceSum": _summed, "MatMul": _matmul,
    "Gemm": _gemm, "Resize": _resize, "Transpose": _transpose, "Concat": _concat, "Slice": _sliced, "Split": _split,
    "Gather": _gathered, "Expand": _expanded, "Pad": _padded, "CumSum": _cumulated, "TopK": _topk,
    "GatherElements": _elements, "ScatterElements": _elements, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip
