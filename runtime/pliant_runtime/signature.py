"""What a network takes and gives: names, dtypes and shapes, free lengths, and how raw samples are prepared."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pliant_runtime.jsonish import Node

DTYPES = ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "bool")
TASKS = ("classify", "regress", "next_token", "dense")
LAYOUTS = ("NHW", "NHWC", "NCHW", "NF", "NT", "N*")
_CALLS = ("tensor", "tuple", "dict")


@dataclass(frozen=True)
class Value:
    """A tensor that goes in or comes out: "N" is the batch, another name a free length, "?" depends on either."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Preprocessing:
    """From raw samples to the network's input: arrange axes, divide by `scale`, subtract `mean`, divide by `std`.

    `dtype`, `layout` and `shape` (of one sample) are those of the raw samples; `mean` and `std` run along axis 1.
    """

    dtype: str
    layout: str
    shape: tuple[int, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs, `call` (how inputs are given: tensor, tuple or dict), preprocessing, class names and task.

    `lengths` are the sizes of inputs that are free, besides the batch: name to the least and the most.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    call: str
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    task: str | None
    lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def _lengths(node: Node) -> dict[str, tuple[int, int]]:
    found = {}
    for name, item in node.mapping(16).items():
        if not (name.isascii() and name.isidentifier() and len(name) <= 40) or name == "N":
            item.fail("is no name of a length")
        least, most = item.list(lambda each: each.integer(1, 1 << 40), least=2, most=2)
        if least > most:
            item.fail(f"must not begin after its end, got [{least}, {most}]")
        found[name] = (least, most)
    return found


def _value(node: Node, names: tuple[str, ...]) -> Value:
    def dimension(size: Node) -> int | str:
        return size.choice(names) if isinstance(size.value, str) else size.integer(0, 1 << 40)

    parts = node.object(need=("name", "dtype", "shape"))
    shape = tuple(parts["shape"].list(dimension, most=16))
    return Value(parts["name"].text(200), parts["dtype"].choice(DTYPES), shape)


def read_signature(node: Node, *, fixed: bool) -> Signature:
    """The signature of a program; only where it is `fixed` may inputs have no rows.

    Raises:
        ArtifactError: anything that is not as the grammar says.
    """
    parts = node.object(need=("inputs", "outputs", "call", "preprocessing", "classes", "task"), may=("lengths",))
    lengths = _lengths(parts["lengths"]) if "lengths" in parts else {}
    names = ("N", "?", *lengths)
    inputs = tuple(parts["inputs"].list(lambda item: _value(item, names), least=1, most=1000))
    outputs = tuple(parts["outputs"].list(lambda item: _value(item, names), most=10_000))
    for name in lengths:
        if not any(name in value.shape for value in inputs):
            parts["lengths"].fail(f"name {name!r}, which no input has")
    for name, values in (("inputs", inputs), ("outputs", outputs)):
        if len({value.name for value in values}) != len(values):
            parts[name].fail("names a tensor twice")
    rows = [bool(value.shape) and value.shape[0] == "N" for value in inputs]
    if not all(rows) and not (fixed and not any(rows)):
        parts["inputs"].fail('must have the batch "N" as axis 0')
    call = parts["call"].choice(_CALLS)
    if call == "tensor" and len(inputs) != 1:
        parts["call"].fail(f"is 'tensor', but there are {len(inputs)} inputs")
    preprocessing = None
    if parts["preprocessing"].value is not None:
        preprocessing = _preprocessing(parts["preprocessing"])
        if len(inputs) != 1:
            parts["preprocessing"].fail("needs a network with one input")
    task = None if parts["task"].value is None else parts["task"].choice(TASKS)
    classes = tuple(parts["classes"].list(lambda item: item.text(1000)))
    return Signature(inputs, outputs, call, preprocessing, classes, task, lengths)


def _preprocessing(node: Node) -> Preprocessing:
    parts = node.object(need=("dtype", "layout", "shape", "scale", "mean", "std"))
    layout = parts["layout"].choice(LAYOUTS)
    shape = tuple(parts["shape"].list(lambda item: item.integer(0, 1 << 40), most=16))
    axes = {"NHW": 2, "NHWC": 3, "NCHW": 3, "NF": 1}.get(layout, len(shape))
    if len(shape) != axes:
        parts["shape"].fail(f"must have {axes} axes for layout {layout}, got {len(shape)}")
    scale = parts["scale"].number()
    mean = tuple(parts["mean"].list(Node.number))
    std = tuple(parts["std"].list(Node.number))
    if scale == 0 or 0 in std:
        node.fail("divides by zero")
    channels = {"NHW": 1, "NHWC": shape[-1] if shape else 0}.get(layout, shape[0] if shape else 0)
    if len(mean) != len(std) or (mean and len(mean) != channels):
        parts["mean"].fail(f"and std must both be empty or have {channels} numbers, got {len(mean)} and {len(std)}")
    return Preprocessing(parts["dtype"].choice(DTYPES), layout, shape, scale, mean, std)
