"""Input sizes that bend: the check that the traced network follows the original at every one of them."""

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import PliantError, as_call, tensors_of
from pliant.core.forms import Form, rebuilt
from pliant.elastic.knobs import knob_of
from pliant.graph.sizes import Size, find_sizes

if TYPE_CHECKING:
    from pliant.elastic.elastic import Elastic

TOLERANCE = 1e-3
"""Largest difference allowed, relative to the largest magnitude of an output: other sizes may take other kernels."""


def smaller(tensor: Tensor, size: Size, value: int) -> Tensor:
    """One input as the network behind a size knob sees it: resized to `value` x `value` pixels, or its first positions.

    Images [..., H, W] are resized as Once-for-All resizes them (arXiv:1908.09791): bilinear, with antialiasing.
    """
    if size.name.startswith("length:"):
        return tensor[:, :value]
    flat = F.interpolate(tensor.flatten(1, -3), (value, value), mode="bilinear", antialias=True, align_corners=False)
    return flat.reshape(*tensor.shape[:-2], value, value)


def check_sizes(net: "Elastic", model: nn.Module) -> None:
    """Compare an elastic network at each of its resolutions and lengths with the original on inputs of that size.

    A trace may have followed a branch that holds for the example's size only, which no other check would see.

    Args:
        net: made of the model.
        model: the original; it is not changed.

    Raises:
        PliantError: the network does not run at a size, or the traced one computes something else there.
    """
    knobs: dict[str, list[Size]] = {}
    for size in find_sizes(model, net.example, net.graph.asked)[0]:
        knobs.setdefault(knob_of(net.space, size.name), []).append(size)
    offered = {knob.name: knob.choices for knob in net.space}
    knobs = {knob: sizes for knob, sizes in knobs.items() if knob in offered}
    original = copy.deepcopy(model).eval() if knobs else model
    for knob, sizes in knobs.items():
        for value in offered[knob][:-1]:
            where = f"{knob} = {value}"
            try:
                wanted = _outputs(original, _at(net.example, original, sizes, int(value)))
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                problem = f"the network does not run at this size ({str(error).splitlines()[0][:200]})"
                fix = "choose sizes that it takes"
                if knob.startswith("length:"):
                    fix += ", and name every input of that length (`length:*`)"
                raise PliantError(problem, where=where, fix=fix) from error
            _compare(net, {knob: value}, wanted, where)


def _compare(net: "Elastic", config: dict[str, int | bool], wanted: Sequence[Tensor], where: str) -> None:
    fix = "leave this size out: the network decides by it, and the trace holds one way only"
    try:
        with net.using(config):
            found = tensors_of(net._in_eval(net))
    except RuntimeError as error:
        problem = f"the traced network does not run at this size ({str(error).splitlines()[0][:200]})"
        raise PliantError(problem, where=where, fix=fix) from error
    for mine, theirs in zip(found, wanted, strict=False):
        same = mine.shape == theirs.shape and bool(
            ((mine.double() - theirs.double()).abs() <= TOLERANCE * theirs.double().abs().max().clamp_min(1e-12)).all()
        )
        if not same:
            raise PliantError("the traced network computes something else than the model", where=where, fix=fix)


def _at(example: Any, model: nn.Module, sizes: Sequence[Size], value: int) -> inspect.BoundArguments:
    form, tensors = Form.of(model.forward, example)
    of_input = {size.input: size for size in sizes}
    new = iter([smaller(t, of_input[name], value) if name in of_input else t
                for name, t in zip(form.names, tensors, strict=True)])  # fmt: skip
    args, kwargs = as_call(example)
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.arguments = {name: rebuilt(argument, new) for name, argument in bound.arguments.items()}
    return bound


def _outputs(model: nn.Module, bound: inspect.BoundArguments) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return tensors_of(model(*bound.args, **bound.kwargs))
