"""Calling a network the same way everywhere, and finding the tensor a loss needs in what it returns."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core.errors import PliantError

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]
"""An example or a batch: a tensor, a tuple (positional arguments) or a dict (keyword arguments)."""


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of an example input.

    Raises:
        TypeError: neither a tensor, nor a tuple, nor a dict.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    raise TypeError(f"inputs are a tensor, a tuple (positional) or a dict (keyword), got {type(inputs).__name__}")


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy, of modules too whose weights are made by hooks (`torch.nn.utils.weight_norm`) and hold gradients.

    Args:
        module: what to copy.
        memo: `id` to what takes the place of an object.

    Raises:
        PliantError: a part of it cannot be copied.
    """
    known = dict(memo or {})
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                known.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(module, known)
    except (RuntimeError, TypeError) as error:
        problem = f"the model cannot be copied ({str(error).splitlines()[0]})"
        raise PliantError(problem, fix="give it as it is before any forward, without open files or locks") from error


def call(net: nn.Module | Callable[..., Any], inputs: Any) -> Any:
    """`net(inputs)`, `net(*inputs)` or `net(**inputs)`, by the type of `inputs`."""
    args, kwargs = as_call(inputs)
    return net(*args, **kwargs)


def map_tensors(fn: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `fn` applied to every tensor in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(fn, item) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(fn, item) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(fn, item) for key, item in value.items()}
    return value


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in a tensor, tuple, list, mapping or dataclass, depth first."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def main_output(output: Any, name: str | None = None) -> Tensor:
    """The one tensor a loss or a metric needs.

    Args:
        output: what a network returned: a tensor, tuple, dict or dataclass.
        name: which field or key to take; by default `logits` where there is one, else the first floating tensor.

    Raises:
        PliantError: there is no such field, or no floating tensor at all.
    """
    if isinstance(output, Tensor):
        return output
    wanted = name or "logits"
    found = output.get(wanted) if isinstance(output, Mapping) else getattr(output, wanted, None)
    if isinstance(found, Tensor):
        return found
    if name is not None:
        raise PliantError(f"the network's output ({type(output).__name__}) has no tensor {name!r}")
    for tensor in tensors_of(output):
        if torch.is_floating_point(tensor):
            return tensor
    raise PliantError(f"the network returned no floating tensor, got {type(output).__name__}")


class Output(dict[str, Any]):
    """What a traced network returns where the original returned named fields: a dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this output has {', '.join(self)}, not {name!r}") from None


def make_output(keys: list[str], *values: Any) -> Output:
    """An `Output` from names and values (the form that an fx graph can call)."""
    return Output(zip(keys, values, strict=True))
