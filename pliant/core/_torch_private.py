"""The one file that touches private torch names. `tests/core/test_torch_private.py` says what broke, one test each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils import _pytree


def rebuild(leaves: list[Any], spec: Any, named: Any) -> Any:
    """The nested structure of `leaves` that a pytree spec describes, without calling user constructors.

    Lists, tuples and dicts come back as such; None stays; every other registered container whose context names its
    children (dataclasses, `ModelOutput`) becomes `named(keys, children)`.
    """
    if spec.is_leaf():
        return leaves.pop(0)
    children = [rebuild(leaves, child, named) for child in _children(spec)]
    if spec.type is list:
        return children
    if spec.type is tuple:
        return tuple(children)
    if spec.type is dict:
        return dict(zip(spec.context, children, strict=True))
    return named(_keys(spec, len(children)), children)


def _children(spec: Any) -> list[Any]:
    return list(spec.children())


def _keys(spec: Any, count: int) -> list[str]:
    context = spec.context
    for candidate in (context, *(context if isinstance(context, list | tuple) else ())):
        named = isinstance(candidate, list | tuple) and all(isinstance(key, str) for key in candidate)
        if named and len(candidate) == count:
            return list(candidate)
    return [f"output{i}" for i in range(count)]


def tree_leaves(value: Any) -> list[Any]:
    """The leaves of nested lists, tuples, dicts and registered containers, in torch's order."""
    return list(_pytree.tree_leaves(value))


def is_overload(target: Any) -> bool:
    """Whether a call target of an fx graph is an ATen (or custom) operator overload."""
    return isinstance(target, torch._ops.OpOverload)


@contextmanager
def no_onnx_log() -> Iterator[None]:
    """Keeps the tracing ONNX exporter from printing its whole graph to stdout when it fails.

    `torch.onnx` switches that log on by itself: its check whether it was on is a function it forgets to call.
    """
    with mock.patch.object(torch._C, "_jit_onnx_log", return_value=None):
        yield
