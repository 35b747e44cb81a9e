"""`Sym`: a Python number that is known only when the network runs.

It behaves like the number in arithmetic, comparisons and torch functions, and refuses to become anything else: a
string, a dict key, an index, a truth value.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pliant.flow.errors import Leak, Undecided

Kind = Literal["bool", "int", "float"]
DTYPES: dict[str, torch.dtype] = {"bool": torch.bool, "int": torch.int64, "float": torch.float64}
Number = bool | int | float


def is_free(value: Any) -> bool:
    """Whether a number is a size that was left free, or computed from one."""
    return isinstance(value, torch.SymInt | torch.SymFloat)


def hashable(shape: Sequence[Any]) -> tuple[Any, ...]:
    """A shape, free sizes included, as a part of a key."""
    return tuple(("size", str(size)) if is_free(size) else size for size in shape)


def kind_of(value: Any) -> Kind | None:
    """The kind of a number, run-time or not; None for anything else."""
    if isinstance(value, Sym):
        return value.kind
    if is_free(value):
        return "int" if isinstance(value, torch.SymInt) else "float"
    if isinstance(value, bool):
        return "bool"
    return "int" if isinstance(value, int) else "float" if isinstance(value, float) else None


def tensor_of(value: Any, kind: Kind) -> Tensor:
    """A number as a tensor of one element of a kind's dtype.

    It has one axis: the tracing exporter takes float64 tensors without axes for Python numbers and makes them float32.
    """
    if isinstance(value, Sym):
        return value.flat if value.kind == kind else value.flat.to(DTYPES[kind])
    if is_free(value):
        return torch.full((1,), value, dtype=DTYPES[kind])
    return torch.tensor([value], dtype=DTYPES[kind])


def _join(*values: Any) -> frozenset[Any]:
    return frozenset().union(*(value.origins for value in values if isinstance(value, Sym)))


def wider(*kinds: Kind) -> Kind:
    """The kind Python's arithmetic gives; bool counts as int."""
    return "float" if "float" in kinds else "int"


class Sym:
    """A run-time number.

    Args:
        tensor: one element without axes or with one, of the kind's dtype (bool, int64 or float64).
        kind: "bool", "int" or "float".
        origins: labels of the counters it was computed from.
    """

    __slots__ = ("_bare", "_flat", "kind", "origins")

    def __init__(self, tensor: Tensor, kind: Kind, origins: frozenset[Any] = frozenset()) -> None:
        bare = tensor.dim() == 0
        self._bare: Tensor | None = tensor if bare else None
        self._flat: Tensor | None = None if bare else tensor
        self.kind, self.origins = kind, origins

    @property
    def tensor(self) -> Tensor:
        """The number without axes."""
        if self._bare is None:
            self._bare = self.flat.reshape(())
        return self._bare

    @property
    def flat(self) -> Tensor:
        """The number with one axis."""
        if self._flat is None:
            self._flat = self.tensor.reshape(1)
        return self._flat

    def cast(self, kind: Kind) -> "Sym":
        """`bool(self)`, `int(self)` or `float(self)`."""
        if kind == self.kind:
            return self
        tensor = self.flat
        if kind == "bool":
            return Sym(tensor != 0, "bool", self.origins)
        return Sym(tensor.to(DTYPES[kind]), kind,
                   self.origins)  # fmt: skip

    # -- arithmetic ----------------------------------------------------------------------------------------------------

    def _arithmetic(self, other: Any, function: Callable[[Any, Any], Any], swap: bool, kind: Kind | None = None) -> Any:
        if isinstance(other, Tensor):
            return function(other, self) if swap else function(self, other)
        theirs = kind_of(other)
        if theirs is None:
            return NotImplemented
        made = kind or wider(self.kind, theirs)
        mine, its = tensor_of(self, made), tensor_of(other, made)
        return Sym(function(its, mine) if swap else function(mine, its), made, _join(self, other))

    def __add__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.add, False)

    def __radd__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.add, True)

    def __sub__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.sub, False)

    def __rsub__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.sub, True)

    def __mul__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.mul, False)

    def __rmul__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.mul, True)

    def __truediv__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.div, False, "float")

    def __rtruediv__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.div, True, "float")

    def __floordiv__(self, other: Any) -> Any:
        return self._arithmetic(other, _floor_divide, False)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._arithmetic(other, _floor_divide, True)

    def __mod__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.remainder, False)

    def __rmod__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.remainder, True)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __pow__(self, other: Any) -> Any:
        whole = self.kind != "float" and isinstance(other, int) and other >= 0
        return self._arithmetic(other, torch.pow, False, "int" if whole else "float")

    def __rpow__(self, other: Any) -> Any:
        return self._arithmetic(other, torch.pow, True, "float")

    def __neg__(self) -> "Sym":
        kind = wider(self.kind)
        return Sym(-tensor_of(self, kind), kind, self.origins)

    def __pos__(self) -> "Sym":
        return self.cast(wider(self.kind))

    def __abs__(self) -> "Sym":
        kind = wider(self.kind)
        return Sym(tensor_of(self, kind).abs(), kind, self.origins)

    def __round__(self, digits: Any = None) -> "Sym":
        if digits is not None:
            raise Leak("the argument of round(x, digits)", self.origins)
        return self if self.kind != "float" else Sym(self.flat.round().to(torch.int64), "int", self.origins)

    def __trunc__(self) -> "Sym":
        return self.cast("int")

    def __floor__(self) -> "Sym":
        return Sym(tensor_of(self, "float").floor().to(torch.int64), "int", self.origins)

    def __ceil__(self) -> "Sym":
        return Sym(tensor_of(self, "float").ceil().to(torch.int64), "int", self.origins)

    # -- comparisons ---------------------------------------------------------------------------------------------------

    def _compared(self, other: Any, function: Callable[[Any, Any], Tensor]) -> Any:
        if isinstance(other, Tensor):
            return function(self, other)
        theirs = kind_of(other)
        if theirs is None:
            return NotImplemented
        kind = wider(self.kind, theirs)
        return Sym(function(tensor_of(self, kind), tensor_of(other, kind)), "bool", _join(self, other))

    def __lt__(self, other: Any) -> Any:
        return self._compared(other, torch.lt)

    def __le__(self, other: Any) -> Any:
        return self._compared(other, torch.le)

    def __gt__(self, other: Any) -> Any:
        return self._compared(other, torch.gt)

    def __ge__(self, other: Any) -> Any:
        return self._compared(other, torch.ge)

    def __eq__(self, other: object) -> Any:
        return self._compared(other, torch.eq)

    def __ne__(self, other: object) -> Any:
        return self._compared(other, torch.ne)

    def _logical(self, other: Any, function: Callable[[Any, Any], Tensor]) -> Any:
        if self.kind != "bool" or kind_of(other) != "bool":
            raise Leak("an operand of a bitwise operator", _join(self, other))
        return Sym(function(self.flat, tensor_of(other, "bool")), "bool", _join(self, other))

    def __and__(self, other: Any) -> Any:
        return other & self.tensor if isinstance(other, Tensor) else self._logical(other, torch.logical_and)

    def __or__(self, other: Any) -> Any:
        return other | self.tensor if isinstance(other, Tensor) else self._logical(other, torch.logical_or)

    def __xor__(self, other: Any) -> Any:
        return other ^ self.tensor if isinstance(other, Tensor) else self._logical(other, torch.logical_xor)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Any:
        raise Leak("the operand of ~", self.origins)

    # -- what it refuses -----------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        raise Undecided()

    def __index__(self) -> int:
        raise Leak("an index or a size", self.origins)

    def __int__(self) -> int:
        raise Leak("an int", self.origins)

    def __float__(self) -> float:
        raise Leak("a float", self.origins)

    def __complex__(self) -> complex:
        raise Leak("a complex number", self.origins)

    def __hash__(self) -> int:
        raise Leak("a key of a dict or a member of a set", self.origins)

    def __str__(self) -> str:
        raise Leak("a string", self.origins)

    def __format__(self, spec: str) -> str:
        raise Leak("a part of a string", self.origins)

    def __iter__(self) -> Any:
        raise TypeError(f"'{self.kind}' object is not iterable")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise Leak("a numpy array", self.origins)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return with_numbers(func, args, kwargs or {})


def _floor_divide(one: Tensor, other: Tensor) -> Tensor:
    return torch.div(one, other, rounding_mode="floor")


# -- torch functions that are given run-time numbers ------------------------------------------------------------------

_ELEMENTWISE_KEEP = frozenset({"where"})


def with_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A torch function whose arguments hold run-time numbers: they take part as 0-d tensors of the dtype that a Python
    number would lead to."""
    name = str(getattr(func, "__name__", ""))
    if name in ("tensor", "as_tensor", "scalar_tensor"):
        return _made(args, kwargs)
    if name in ("full", "full_like", "new_full"):
        return _filled(func, name, args, kwargs)
    if name in ("__getitem__", "__setitem__"):
        raise Leak("an index", _join(*_syms((args, kwargs))))
    tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
    if name in ("clamp", "clip", "clamp_", "clip_"):
        return _clamped(tensors[0], args[1:], kwargs, in_place=name.endswith("_"))

    def plain(value: Any) -> Any:
        if isinstance(value, Sym):
            return _for_operands(value, tensors)
        if isinstance(value, list | tuple) and any(True for _ in _syms(value)):
            raise Leak("a size or one of several numbers", _join(*_syms(value)))
        return value

    try:
        return func(*[plain(item) for item in args], **{key: plain(item) for key, item in kwargs.items()})
    except TypeError as error:
        raise Leak(f"an argument of {name}", _join(*_syms((args, kwargs)))) from error


def _syms(value: Any) -> Any:
    if isinstance(value, Sym):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _syms(item)
    elif isinstance(value, dict):
        yield from _syms(list(value.values()))


_HOLDERS = (list, tuple, dict)


def holds_sym(value: Any) -> bool:
    """Whether there is a run-time number in (nested lists, tuples and dicts of) arguments."""
    if isinstance(value, Sym):
        return True
    if isinstance(value, list | tuple):
        return any(isinstance(item, Sym) or (isinstance(item, _HOLDERS) and holds_sym(item)) for item in value)
    return isinstance(value, dict) and bool(value) and holds_sym(list(value.values()))


def _for_operands(value: Sym, tensors: list[Tensor]) -> Tensor:
    sample: Number = {"bool": True, "int": 1, "float": 1.0}[value.kind]
    if not tensors:
        return value.tensor
    dtype = torch.result_type(tensors[0], sample)
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, torch.result_type(tensor, sample))
    return value.tensor.to(dtype)


def _default(kind: Kind) -> torch.dtype:
    return torch.get_default_dtype() if kind == "float" else DTYPES[kind]


def _made(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    data, wanted = (args[0] if args else kwargs["data"]), kwargs.get("dtype")
    kinds = [value for value in map(kind_of, _leaves(data)) if value is not None]
    dtype = wanted or _default("float" if "float" in kinds else "int" if "int" in kinds else "bool")

    def build(value: Any) -> Tensor:
        if isinstance(value, list | tuple):
            return torch.stack([build(item) for item in value])
        return value.tensor.to(dtype) if isinstance(value, Sym) else torch.as_tensor(value, dtype=dtype)

    return build(data)


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list | tuple) else [value]


def _filled(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    place = 2 if name == "new_full" else 1
    value = args[place] if len(args) > place else kwargs.get("fill_value")
    if not isinstance(value, Sym):
        raise Leak("a size", _join(*_syms((args, kwargs))))
    rest = {key: item for key, item in kwargs.items() if key != "fill_value"}
    if "dtype" not in rest and name == "full":
        rest["dtype"] = _default(value.kind)
    empty: Tensor = func(*args[:place], 0, **rest)
    return empty + value.tensor.to(empty.dtype)


def _clamped(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, in_place: bool) -> Tensor:
    names = dict(zip(("min", "max"), args)) | kwargs
    low, high = names.get("min"), names.get("max")
    result = x
    for bound, function in ((low, torch.maximum), (high, torch.minimum)):
        if bound is not None:
            limit = _for_operands(bound, [x]) if isinstance(bound, Sym) else torch.as_tensor(bound, dtype=x.dtype)
            result = function(result, limit.to(result.dtype))
    return x.copy_(result) if in_place else result


MATH: dict[Any, Callable[[Tensor], Tensor]] = {
    math.exp: torch.exp, math.log: torch.log, math.sqrt: torch.sqrt, math.tanh: torch.tanh, math.sin: torch.sin,
    math.cos: torch.cos, math.log2: torch.log2, math.log10: torch.log10, math.log1p: torch.log1p,
    math.expm1: torch.expm1, math.fabs: torch.abs,
}  # fmt: skip
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "Lt": operator.lt, "LtE": operator.le, "Gt": operator.gt, "GtE": operator.ge, "Eq": operator.eq,
    "NotEq": operator.ne, "Is": operator.is_, "IsNot": operator.is_not,
}  # fmt: skip
