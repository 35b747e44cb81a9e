"""Forms: the structure of what goes into and comes out of a network, apart from the tensors in it.

A form is a tree of tuples, lists, dicts, `Fields` (dataclasses and named tuples) and constants with a `Slot` in the
place of each tensor, numbered depth first.
"""

import copy
import dataclasses
import enum
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pliant.core.calls import as_call, make_output
from pliant.core.errors import PliantError

_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout,
          torch.memory_format, type(None), type(Ellipsis), slice, range)  # fmt: skip
"""Constants: types whose values are part of the form."""


@dataclass(frozen=True)
class Slot:
    """The place of the tensor number `index`."""

    index: int


@dataclass(frozen=True)
class Fields:
    """A value with named fields."""

    keys: tuple[str, ...]
    values: tuple[Any, ...]


class _Absent:
    """An argument that was not given and has no default that a form can hold."""

    def __repr__(self) -> str:
        return "nothing"

    def __reduce__(self) -> str:
        return "ABSENT"  # there is but one


ABSENT = _Absent()


def is_leaf(value: Any) -> bool:
    """Whether a value has a slot: tensors, and sizes that are not numbers yet."""
    return isinstance(value, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)


def parts_of(value: Any, *, objects: bool = False) -> list[tuple[Any, Any]] | None:
    """The (key, part) pairs of a container in order, None of what is none.

    Args:
        value: anything.
        objects: whether instances of any class count, by their attributes.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (Slot, Tensor, torch.nn.Module, type, *_PLAIN)):
        return None
    if dataclasses.is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return list(vars(value).items()) if objects and hasattr(value, "__dict__") else None


def pack(value: Any, leaves: list[Any], *, objects: bool = False) -> Any:
    """The form of a value; its tensors are appended to `leaves`.

    Args:
        value: anything.
        leaves: receives the tensors.
        objects: whether instances of any class count as containers, by their attributes.

    Raises:
        TypeError: a part that is no tensor, no container and no constant.
    """
    if is_leaf(value):
        leaves.append(value)
        return Slot(len(leaves) - 1)
    parts = parts_of(value, objects=objects)
    if parts is None:
        if not isinstance(value, (Slot, *_PLAIN)):
            raise TypeError(f"a {type(value).__name__} among tensors, tuples, lists, dicts, dataclasses and constants")
        return value
    packed = [pack(part, leaves, objects=objects) for _, part in parts]
    if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
        return dict(zip(value.keys(), packed, strict=True))
    if isinstance(value, list):
        return packed
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(packed)
    return Fields(tuple(str(key) for key, _ in parts), tuple(packed))


def fill(form: Any, leaf: Callable[[Slot], Any], fields: Callable[[Any, list[Any]], Any] | None = None) -> Any:
    """A form with `leaf` in place of its slots and `fields(keys, values)` of its `Fields` (by default an `Output`)."""
    if isinstance(form, Slot):
        return leaf(form)
    if isinstance(form, Fields):
        values = [fill(item, leaf, fields) for item in form.values]
        return make_output(list(form.keys), *values) if fields is None else fields(form.keys, values)
    if isinstance(form, tuple | list):
        return type(form)(fill(item, leaf, fields) for item in form)
    if isinstance(form, dict):
        return {key: fill(item, leaf, fields) for key, item in form.items()}
    return form


def slots(form: Any) -> list[int]:
    """The numbers of the slots in a form, in order."""
    found: list[int] = []
    fill(form, lambda slot: found.append(slot.index))
    return found


def rebuilt(value: Any, leaves: Iterator[Any], *, objects: bool = False) -> Any:
    """A copy of a value, of the same types, with its tensors (or slots) replaced in order by `leaves`."""
    if is_leaf(value) or isinstance(value, Slot):
        return next(leaves)
    parts = parts_of(value, objects=objects)
    if parts is None:
        return value
    new = [(key, rebuilt(part, leaves, objects=objects)) for key, part in parts]
    if isinstance(value, tuple):
        items = [part for _, part in new]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [part for _, part in new]
    mapping: bool = isinstance(value, Mapping)
    kind: Any = type(value)
    if mapping and hasattr(value, "__dataclass_fields__"):
        return kind(**dict(new))
    twin = copy.copy(value)
    for key, part in new:
        if mapping:
            twin[key] = part
        else:
            object.__setattr__(twin, key, part)
    return twin


def leaves_of(value: Any, *, objects: bool = False) -> list[Any]:
    """The tensors (and sizes) in a value, in the order of `pack` and `rebuilt`."""
    if is_leaf(value):
        return [value]
    return [leaf for _, part in parts_of(value, objects=objects) or () for leaf in leaves_of(part, objects=objects)]


def match(value: Any, form: Any, found: dict[int, Tensor], where: str) -> None:
    """Read the tensors of a value that must have a form.

    Args:
        value: what was given.
        form: what it must look like.
        found: receives slot number to tensor.
        where: the argument's name, for messages.

    Raises:
        TypeError: another structure.
        ValueError: another constant.
    """
    if isinstance(form, Slot):
        if not isinstance(value, Tensor):
            raise TypeError(f"{where} was a tensor when the network was traced, got {_short(value)}")
        found[form.index] = value
    elif isinstance(form, tuple | list):
        if not isinstance(value, tuple | list) or len(value) != len(form):
            raise TypeError(f"{where} was a sequence of {len(form)} when the network was traced, got {_short(value)}")
        for number, (part, inner) in enumerate(zip(value, form, strict=True)):
            match(part, inner, found, f"{where}[{number}]")
    elif isinstance(form, dict | Fields):
        pairs = form.items() if isinstance(form, dict) else zip(form.keys, form.values, strict=True)
        held = dict(parts_of(value) or ())
        if isinstance(form, dict) and held.keys() != form.keys():
            raise TypeError(f"{where} had the keys {', '.join(map(str, form))} when traced, got {_short(value)}")
        for key, inner in pairs:
            match(held.get(key, ABSENT), inner, found, f"{where}.{key}")
    elif form is not value and (type(form) is not type(value) or form != value):
        if type(form) is not type(value):
            raise TypeError(f"{where} was {_short(form)} when the network was traced, got {_short(value)}")
        problem = f"{where} was {form!r} when the network was traced and is a part of it, got {_short(value)}"
        raise ValueError(f"{problem}; trace it again with that value")


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value) if isinstance(value, (*_PLAIN, _Absent)) else f"a {type(value).__name__}"


@dataclass(frozen=True)
class Argument:
    """One parameter of a forward.

    Args:
        name: its name.
        kind: its kind, as the name of one of `inspect.Parameter`'s.
        form: what the example gave for it, else its default.
        default: its default, `ABSENT` where there is none (or none that a form can hold).
        optional: whether it may be left out.
        given: whether the example gave it.
    """

    name: str
    kind: str
    form: Any
    default: Any = ABSENT
    optional: bool = False
    given: bool = True

    @property
    def left_out(self) -> Any:
        """What it is where a call leaves it out."""
        return {"VAR_POSITIONAL": (), "VAR_KEYWORD": {}}.get(self.kind, self.default)


@dataclass(frozen=True)
class Form:
    """How a network is called: its parameters, and where in them the tensors are."""

    arguments: tuple[Argument, ...]
    names: tuple[str, ...]

    @staticmethod
    def of(forward: Callable[..., Any], example: Any) -> "tuple[Form, list[Tensor]]":
        """The form of a call of `forward` on an example, and the example's tensors in the form's order.

        Raises:
            PliantError: the example does not fit, or holds objects that cannot be followed.
        """
        args, kwargs = as_call(example)
        signature = inspect.signature(forward)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise PliantError(f"the example does not fit forward ({error})") from error
        leaves: list[Tensor] = []
        arguments = []
        for name, parameter in signature.parameters.items():
            default = ABSENT if parameter.default is parameter.empty else parameter.default
            default = default if isinstance(default, _PLAIN) else ABSENT
            blank = Argument(name, parameter.kind.name, None, default)
            form: Any = blank.left_out
            if name in given:
                try:
                    form = pack(given[name], leaves)
                except TypeError as error:
                    raise PliantError(
                        f"the argument {name} holds {error}",
                        fix="give its tensors in tuples, lists, dicts or dataclasses",
                    ) from error
            optional = blank.kind.startswith("VAR") or parameter.default is not parameter.empty
            arguments.append(Argument(name, blank.kind, form, default, optional, name in given))
        return Form(tuple(arguments), _names(arguments, len(leaves))), leaves

    @staticmethod
    def plain(names: Sequence[str]) -> "Form":
        """Tensors alone, under these names."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD.name
        return Form(tuple(Argument(name, kind, Slot(i)) for i, name in enumerate(names)), tuple(names))

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any], name: str = "the network") -> list[Tensor]:
        """The tensors of a call, in the order of `names`.

        Args:
            args, kwargs: the call's.
            name: the network's, for messages.

        Raises:
            TypeError: another structure than the example's.
            ValueError: another constant.
        """
        if self._plain and not kwargs and len(args) == len(self.names) and all(isinstance(a, Tensor) for a in args):
            return list(args)
        try:
            given = dict(self._signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            got = f"{len(args)} positional and {sorted(kwargs)}"
            took = ", ".join(self.names)
            raise TypeError(f"{name} was traced with the inputs {took}; got {got} ({error})") from None
        found: dict[int, Tensor] = {}
        swallowed = {a.name for a in self.arguments if a.kind == "VAR_KEYWORD" and not a.given}
        unknown = [word for each in swallowed for word in given.get(each, ())]
        if unknown:
            raise TypeError(f"{name} was traced with the inputs {', '.join(self.names)}, without {', '.join(unknown)}")
        for argument in self.arguments:
            if argument.name in given or argument.given:
                match(given.get(argument.name, argument.left_out), argument.form, found, argument.name)
        return [found[i] for i in range(len(self.names))]

    @cached_property
    def _plain(self) -> bool:
        """Whether the tensors are the leading arguments, and all others may be left out."""
        leading, others = self.arguments[: len(self.names)], self.arguments[len(self.names) :]
        return [a.form for a in leading if a.kind.startswith("POSITIONAL")] == [
            Slot(i) for i in range(len(self.names))
        ] and all(not a.given or a.form == a.left_out for a in others)

    @cached_property
    def _signature(self) -> inspect.Signature:
        made = []
        for argument in self.arguments:
            free = argument.optional and not argument.kind.startswith("VAR")
            kind, default = (
                getattr(inspect.Parameter, argument.kind),
                argument.default if free else inspect.Parameter.empty,
            )
            made.append(inspect.Parameter(argument.name, kind, default=default))
        return inspect.Signature(made)

    def flat_arguments(self) -> list[tuple[str, Any, Any]]:
        """(name, form, default) of what the example gave, with variadic parameters spread out, in order of position."""
        found: list[tuple[str, Any, Any]] = []
        for argument in self.arguments:
            if argument.kind == "VAR_POSITIONAL":
                found += [(f"{argument.name}_{i}", item, ABSENT) for i, item in enumerate(argument.form)]
            elif argument.kind == "VAR_KEYWORD":
                found += [(key, item, ABSENT) for key, item in argument.form.items()]
            elif argument.given:
                found.append((argument.name, argument.form, argument.default if argument.optional else ABSENT))
        return found


def _names(arguments: Sequence[Argument], count: int) -> tuple[str, ...]:
    """A name for every tensor, from its place: `x`, `pair_0`, `batch_mask`."""
    found: dict[int, str] = {}

    def walk(form: Any, path: str) -> None:
        if isinstance(form, Slot):
            found[form.index] = "".join(c if c.isalnum() or c == "_" else "_" for c in path)
            return
        named = dict(zip(form.keys, form.values, strict=True)) if isinstance(form, Fields) else form
        for key, item in parts_of(named) or ():
            walk(item, f"{path}_{key}" if path else str(key))

    for argument in arguments:
        walk(argument.form, "" if argument.kind == "VAR_KEYWORD" else argument.name)
    names: list[str] = []
    for index in range(count):
        name, number = found[index], 1
        while name in names:
            name, number = f"{found[index]}_{number}", number + 1
        names.append(name)
    return tuple(names)


def part_of(value: Any, key: Any) -> Any:
    """One part of a container, by the key that `parts_of` gives it."""
    return value[key] if isinstance(value, Mapping) or isinstance(key, int) else getattr(value, key)


def must_be(value: Any, wanted: Any, where: str) -> None:
    """Check a constant among the arguments of a traced network.

    Raises:
        ValueError: another value.
        TypeError: a tensor in its place.
    """
    match(value, wanted, {}, where)


def encode(form: Any) -> Any:
    """A form as JSON data; `decode` is the inverse.

    Raises:
        PliantError: a constant that JSON does not have.
    """
    if isinstance(form, Slot):
        return {"slot": form.index}
    if isinstance(form, Fields):
        return {"fields": list(form.keys), "values": [encode(item) for item in form.values]}
    if isinstance(form, tuple):
        return {"tuple": [encode(item) for item in form]}
    if isinstance(form, list):
        return [encode(item) for item in form]
    if isinstance(form, dict):
        return {"dict": [[key, encode(item)] for key, item in form.items()]}
    if form is ABSENT:
        return {"absent": True}
    if form is None or isinstance(form, bool | int | float | str):
        return form
    raise PliantError(f"cannot store an argument of type {type(form).__name__}")


def decode(data: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "slot" in data:
        return Slot(int(data["slot"]))
    if "fields" in data:
        return Fields(tuple(data["fields"]), tuple(decode(item) for item in data["values"]))
    if "tuple" in data:
        return tuple(decode(item) for item in data["tuple"])
    if "dict" in data:
        return {key: decode(item) for key, item in data["dict"]}
    return ABSENT


def to_dict(form: Form) -> dict[str, Any]:
    """A form of a call as JSON data."""
    rows = [[a.name, a.kind, encode(a.form), encode(a.default), a.optional, a.given] for a in form.arguments]
    return {"names": list(form.names), "arguments": rows}


def from_dict(data: Mapping[str, Any]) -> Form:
    """The inverse of `to_dict`."""
    rows = [Argument(n, kind, decode(f), decode(d), bool(o), bool(g)) for n, kind, f, d, o, g in data["arguments"]]
    return Form(tuple(rows), tuple(data["names"]))
