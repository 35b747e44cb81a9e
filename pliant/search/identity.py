"""What tells one function from another, also in another process."""

from functools import partial
from types import CodeType
from typing import Any


def identity(fn: Any) -> list[Any]:
    """What tells one function from another across processes: names, code and the plain values it is bound to."""
    if isinstance(fn, partial):
        return [_plain(fn.args), _plain(fn.keywords), identity(fn.func)]
    inner = getattr(fn, "__func__", fn)  # a bound method
    if not hasattr(inner, "__code__"):  # an object that can be called, or something written in C
        inner = type(inner).__call__
        if not hasattr(inner, "__code__"):
            return [type(fn).__module__, getattr(fn, "__qualname__", type(fn).__qualname__)]
    cells = [_plain(_content(cell)) for cell in inner.__closure__ or ()]
    defaults = [_plain(inner.__defaults__), _plain(inner.__kwdefaults__)]
    return [inner.__module__, inner.__qualname__, _code(inner.__code__), cells, defaults]


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is assigned later
        return None


def _code(code: CodeType) -> list[Any]:
    inner = [_code(value) if isinstance(value, CodeType) else _plain(value) for value in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), inner]


def _plain(value: Any) -> Any:
    """Numbers, strings and containers of them as text; anything else by its type, since `repr` may hold an address."""
    if isinstance(value, bool | int | float | str | bytes | None):
        return repr(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, dict):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    return type(value).__qualname__
