"""States of a program as JSON data, for networks that are stored without their code."""

from collections.abc import Mapping
from typing import Any

import torch

from pliant.core import PliantError
from pliant.flow.explore import Arg, Const, Edge, In, Leaf, Out, Scalar
from pliant.flow.joint import Stage

_SCALARS = ("bool", "int", "float")


def stage_data(stage: Stage) -> dict[str, Any]:
    """A state as JSON data; `stage_of` is the inverse."""
    return {
        "params": list(stage.params),
        "outputs": list(stage.outputs),
        "kinds": [[str(dtype).removeprefix("torch."), list(shape)] for dtype, shape in stage.kinds],
        "value": None if stage.value is None else _arg(stage.value),
        "keys": None if stage.keys is None else list(stage.keys),
        "edges": [[edge.target, [_arg(arg) for arg in edge.args]] for edge in stage.edges],
        "returns": _shape(stage.returns),
        "raised": None if stage.raised is None else list(stage.raised),
        "at": stage.at,
    }


def stage_of(data: Mapping[str, Any]) -> Stage:
    """The inverse of `stage_data`.

    Raises:
        PliantError: a part that no state has.
        KeyError, TypeError, ValueError: data of another form.
    """
    return Stage(
        params=tuple(map(str, data["params"])),
        outputs=tuple(map(str, data["outputs"])),
        kinds=tuple((_dtype(name), tuple(int(size) for size in shape)) for name, shape in data["kinds"]),
        value=None if data["value"] is None else _arg_of(data["value"]),
        keys=None if data["keys"] is None else tuple(int(key) for key in data["keys"]),
        edges=tuple(Edge(int(target), tuple(map(_arg_of, args))) for target, args in data["edges"]),
        returns=_shape_of(data["returns"]),
        raised=None if data["raised"] is None else (str(data["raised"][0]), str(data["raised"][1])),
        at=str(data["at"]),
    )


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise PliantError(f"no dtype {name!r}")
    return found


def _arg(arg: Arg) -> list[Any]:
    if isinstance(arg, Const):
        return ["const", repr(arg.value) if isinstance(arg.value, float) else arg.value]
    return ["in" if isinstance(arg, In) else "out", arg.index]


def _arg_of(data: Any) -> Arg:
    kind, value = data
    if kind == "const":
        return Const(float(value) if isinstance(value, str) else value)
    if kind not in ("in", "out"):
        raise PliantError(f"no value {kind!r} of a state")
    return In(int(value)) if kind == "in" else Out(int(value))


def _shape(shape: Any) -> Any:
    if isinstance(shape, Leaf):
        return {"t": _arg(shape.arg)}
    if isinstance(shape, Scalar):
        return {"scalar": _arg(shape.arg), "type": shape.kind}
    if shape is None:
        return None
    kind, inner = next(iter(shape.items()))
    if kind == "dict":
        return {kind: [[name, _shape(item)] for name, item in inner.items()]}
    if kind in ("list", "tuple"):
        return {kind: [_shape(item) for item in inner]}
    return {"number": repr(inner)} if isinstance(inner, float) else {"py": inner}


def _shape_of(data: Any) -> Any:
    if data is None:
        return None
    kind, inner = next(iter(data.items()))
    if kind == "t":
        return Leaf(_arg_of(inner))
    if kind == "scalar":
        if data["type"] not in _SCALARS:
            raise PliantError(f"no number of the kind {data['type']!r}")
        return Scalar(_arg_of(inner), data["type"])
    if kind == "dict":
        return {kind: {str(name): _shape_of(item) for name, item in inner}}
    if kind in ("list", "tuple"):
        return {kind: [_shape_of(item) for item in inner]}
    if kind not in ("py", "number"):
        raise PliantError(f"no part {kind!r} of what a state returns")
    return {"py": float(inner) if kind == "number" else inner}
