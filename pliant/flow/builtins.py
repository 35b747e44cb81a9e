"""Python's built-in functions and operators, for values that are known at run time."""

import builtins
import contextlib
import io
import logging
import math
import random
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pliant.flow.errors import Final, Leak, Undecided
from pliant.flow.reader import Constants, scalar, truth
from pliant.flow.scalar import COMPARE, MATH, Sym, holds_sym, is_free, kind_of, tensor_of, wider
from pliant.flow.values import SymRange

_INDEXED = (list, tuple, str, nn.ModuleList, nn.Sequential, nn.ParameterList, Mapping)
_SIDE = "a side effect, which a program does not have"


class Operators:
    """The functions that rewritten code calls.

    Args:
        constants: the network's own tensors, whose values are known.
        sizes: the free sizes; None where there are none.
    """

    def __init__(self, constants: Constants, sizes: Any = None) -> None:
        self.constants, self.sizes = constants, sizes
        table: dict[Any, Callable[..., Any]] = {
            int: self._int, float: self._float, bool: self._bool, max: self._max, min: self._min, any: self._any,
            all: self._all, isinstance: self._isinstance, range: self._range, print: self._print, open: self._print,
            input: self._print, math.isclose: self._isclose, math.floor: _floor, math.ceil: _ceil, math.pow: _pow,
            math.isnan: _isnan, math.isinf: _isinf, sorted: self._sorted,
        }  # fmt: skip
        for function, ours in MATH.items():
            table[function] = _mathematical(function, ours)
        self.table = {id(function): ours for function, ours in table.items()}

    def names(self) -> dict[str, Any]:
        """The functions under the names that rewritten code uses."""
        return {
            "__flow_call__": self.call, "__flow_bool__": self.boolean, "__flow_not__": self.negated,
            "__flow_compare__": self.compare, "__flow_if__": self.chosen, "__flow_sub__": self.subscript,
            "__flow_training__": self.training, "__flow_truth__": self.truth, "__flow_pack__": _pack,
        }  # fmt: skip

    def symbolic(self, value: Any) -> bool:
        """Whether a value's truth is known at run time alone."""
        return isinstance(value, Sym) or (isinstance(value, Tensor) and value not in self.constants)

    # -- what rewritten code calls -------------------------------------------------------------------------------------

    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """`function(*args, **kwargs)`, with our own version of some functions."""
        ours = self.table.get(id(function))
        if ours is not None:
            return ours(*args, **kwargs)
        owner = getattr(function, "__self__", None)
        if isinstance(owner, random.Random) or type(owner).__name__ in ("RandomState", "Generator"):
            raise Final("random numbers are drawn", "draw them outside and give them as an input")
        if getattr(function, "__module__", "") == "time" or owner is time:
            raise Final("the clock is read", "measure outside of the network")
        if isinstance(owner, logging.Logger | io.IOBase):
            raise Final(_SIDE, "log outside of the network")
        if isinstance(function, nn.Module) and isinstance(function, torch.jit.ScriptModule):
            raise Final("TorchScript has no Python to follow", "give the module it was made from")
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            numbers = [*args, *kwargs.values()]
            if not native(function) or not holds_sym(numbers):
                raise
            origins = frozenset().union(*(value.origins for value in numbers if isinstance(value, Sym)))
            raise Leak(f"an argument of {getattr(function, '__name__', 'a function')}", origins) from error

    def boolean(self, both: bool, /, *operands: Callable[[], Any]) -> Any:
        """`a and b and ...` (or `or`); decided operands cut it short, undecided ones are joined."""
        joined: Tensor | None = None
        value: Any = both
        for operand in operands:
            value = operand()
            if self.symbolic(value):
                if (value.kind if isinstance(value, Sym) else value.dtype) not in ("bool", torch.bool):
                    raise Undecided(kind="join")  # its value may be asked for, not its truth alone
                found = truth(value)
                joined = found if joined is None else (joined & found if both else joined | found)
            elif bool(value) != both:
                return value if joined is None else not both
        return value if joined is None else Sym(joined, "bool")

    def negated(self, value: Any) -> Any:
        """`not value`."""
        return Sym(torch.logical_not(truth(value)), "bool") if self.symbolic(value) else not value

    def compare(self, signs: Sequence[str], *values: Any) -> Any:
        """`a < b < c`, and `a in b`."""
        result: Any = True
        for sign, one, other in zip(signs, values, values[1:]):
            if sign in ("In", "NotIn"):
                found = self._member(one, other)
                found = self.negated(found) if sign == "NotIn" else found
            else:
                found = COMPARE[sign](one, other)
            result = found if result is True else self.boolean(True, _always(result), _always(found))
        return result

    def _member(self, value: Any, container: Any) -> Any:
        inside = list(container) if isinstance(container, list | tuple | set | range) else []
        if isinstance(container, Tensor) and self.symbolic(container):
            return Sym((container == (value.tensor if isinstance(value, Sym) else value)).any(), "bool")
        if isinstance(container, Mapping):
            inside = list(container)
        unknown = self.symbolic(value) or any(self.symbolic(item) for item in inside)
        numeric = [item for item in inside if kind_of(item) is not None or isinstance(item, Tensor)]
        if not unknown or (not numeric and inside):
            return value in container
        return self._any([value == item for item in numeric])

    def chosen(self, test: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
        """`yes if test else no`."""
        if self.symbolic(test):
            truth(test)
            raise Undecided(kind="if")
        return yes() if test else no()

    def subscript(self, container: Any, index: Any) -> Any:
        """`container[index]`."""
        whole = isinstance(index, Tensor) and index.numel() == 1 and not index.is_floating_point()
        if not (isinstance(index, Sym) or whole) or not isinstance(container, _INDEXED):
            return container[index]
        if not self.symbolic(index):
            return container[int(index)]
        if isinstance(index, Sym) and index.origins:
            raise Leak("an index", index.origins)
        raise Undecided("an element is chosen by a tensor", "give the choice a line of its own", "choice")

    def training(self, owner: Any) -> Any:
        """`owner.training`."""
        if isinstance(owner, nn.Module) and owner.training:
            raise Final(
                "the code asks for the training mode, and the network is in it", "call net.eval() before compiling"
            )
        return owner.training

    def truth(self, value: Any) -> Any:
        """The condition of a comprehension."""
        if self.symbolic(value):
            raise Undecided(kind="loop")
        return value

    # -- our own versions ----------------------------------------------------------------------------------------------

    def _cast(self, kind: Any, values: tuple[Any, ...], kwargs: Any) -> Any:
        if len(values) == 1 and not kwargs and self.symbolic(values[0]):
            value = values[0] if isinstance(values[0], Sym) else scalar(values[0])
            return value.cast(kind.__name__)
        if len(values) == 1 and not kwargs and is_free(values[0]) and kind_of(values[0]) == kind.__name__:
            return values[0]
        return kind(*values, **kwargs)

    def _int(self, *values: Any, **kwargs: Any) -> Any:
        return self._cast(builtins.int, values, kwargs)

    def _float(self, *values: Any) -> Any:
        return self._cast(builtins.float, values, {})

    def _bool(self, *values: Any) -> Any:
        if len(values) == 1 and self.symbolic(values[0]):
            return Sym(truth(values[0]), "bool")
        return builtins.bool(*values)

    def _extreme(self, values: tuple[Any, ...], kwargs: Any, native: Any, first: str) -> Any:
        items = list(values[0]) if len(values) == 1 else list(values)
        if not any(self.symbolic(item) for item in items):
            return native(items, **kwargs)
        if kwargs.get("key") is not None:
            raise Leak(f"an operand of {native.__name__} with a key")
        best = items[0]
        for item in items[1:]:
            best = self._better(best, item, first)
        return best

    def _better(self, one: Any, other: Any, sign: str) -> Any:
        if isinstance(one, Tensor) or isinstance(other, Tensor):
            pair = [item if isinstance(item, Tensor) else torch.as_tensor(item) for item in (one, other)]
            if any(item.numel() != 1 for item in pair) or pair[0].dtype != pair[1].dtype:
                raise Leak("an operand of max or min")
            return torch.where(COMPARE[sign](pair[1], pair[0]), pair[1], pair[0])
        kind = wider(kind_of(one) or "float", kind_of(other) or "float")
        tensors = tensor_of(one, kind), tensor_of(other, kind)
        function = torch.maximum if sign == "Gt" else torch.minimum
        origins = [item.origins for item in (one, other) if isinstance(item, Sym)]
        return Sym(function(*tensors), kind, frozenset().union(*origins))

    def _max(self, *values: Any, **kwargs: Any) -> Any:
        return self._extreme(values, kwargs, builtins.max, "Gt")

    def _min(self, *values: Any, **kwargs: Any) -> Any:
        return self._extreme(values, kwargs, builtins.min, "Lt")

    def _any(self, values: Iterable[Any]) -> Any:
        result = self.boolean(False, *map(_always, values))
        return result if isinstance(result, Sym) else builtins.bool(result)

    def _all(self, values: Iterable[Any]) -> Any:
        result = self.boolean(True, *map(_always, values))
        return result if isinstance(result, Sym) else builtins.bool(result)

    def _sorted(self, values: Iterable[Any], **kwargs: Any) -> Any:
        items = list(values)
        if any(self.symbolic(item) for item in items):
            raise Leak("an operand of sorted")
        return builtins.sorted(items, **kwargs)

    def _isinstance(self, value: Any, kinds: Any) -> Any:
        if not isinstance(value, Sym):
            return builtins.isinstance(value, kinds)
        wanted = kinds if isinstance(kinds, tuple) else (kinds,)
        return any(issubclass({"bool": bool, "int": int, "float": float}[value.kind], kind) for kind in wanted)

    def _range(self, *ends: Any) -> Any:
        ends = tuple(scalar(end) if isinstance(end, Tensor) and self.symbolic(end) else end for end in ends)
        sure, begun = False, None
        if self.sizes is not None and all(kind_of(end) == "int" for end in ends):
            start, stop, step = (0, ends[0], 1) if len(ends) == 1 else (*ends, 1)[:3]
            looped = self.sizes.looped(start, stop)
            if looped is not None and not isinstance(step, Sym) and not is_free(step) and step > 0:
                sure, begun = looped, start
                ends = (start, stop if isinstance(stop, Sym) else Sym(tensor_of(stop, "int"), "int"), step)
        if not any(isinstance(end, Sym) for end in ends):
            return builtins.range(*ends)
        for end in ends:
            if isinstance(end, Sym) and end.origins:
                raise Leak("the end of a range", end.origins)
        start, stop, step = (0, ends[0], 1) if len(ends) == 1 else (*ends, 1)[:3]
        if isinstance(step, Sym) or step == 0:
            raise Leak("the step of a range")
        return SymRange(start, stop, step, sure, begun)

    def _print(self, *values: Any, **kwargs: Any) -> Any:
        raise Final(_SIDE, "print outside of the network, from what it returns")

    def _isclose(self, one: Any, other: Any, *, rel_tol: Any = 1e-9, abs_tol: Any = 0.0) -> Any:
        if not (self.symbolic(one) or self.symbolic(other)):
            return math.isclose(one, other, rel_tol=rel_tol, abs_tol=abs_tol)
        bound = self._max(rel_tol * self._max(abs(one), abs(other)), abs_tol)
        return abs(one - other) <= bound


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _pack(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    return function, args, kwargs


def _mathematical(native: Any, ours: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def function(value: Any, *rest: Any) -> Any:
        if isinstance(value, Tensor):
            value = value.item()
        if not isinstance(value, Sym):
            return native(value, *rest)
        found = Sym(ours(tensor_of(value, "float")), "float", value.origins)
        return found / Sym(ours(tensor_of(rest[0], "float")), "float") if rest else found

    return function


def _floor(value: Any) -> Any:
    return math.floor(value.item() if isinstance(value, Tensor) else value)


def _ceil(value: Any) -> Any:
    return math.ceil(value.item() if isinstance(value, Tensor) else value)


def _pow(one: Any, other: Any) -> Any:
    if isinstance(one, Sym) or isinstance(other, Sym):
        return one**other
    return math.pow(one, other)


def _isnan(value: Any) -> Any:
    value = value.item() if isinstance(value, Tensor) else value
    return Sym(value.flat.isnan(), "bool", value.origins) if isinstance(value, Sym) else math.isnan(value)


def _isinf(value: Any) -> Any:
    value = value.item() if isinstance(value, Tensor) else value
    return Sym(value.flat.isinf(), "bool", value.origins) if isinstance(value, Sym) else math.isinf(value)


QUIET_CONTEXTS = (torch.no_grad, torch.enable_grad, torch.set_grad_enabled, torch.inference_mode,
                  torch.autograd.profiler.record_function, contextlib.nullcontext)  # fmt: skip
"""Contexts that change nothing in a program."""


def native(function: Any) -> bool:
    """Whether a function has no Python code of its own."""
    return isinstance(function, types.BuiltinFunctionType | type)
