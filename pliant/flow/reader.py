"""Watches what Python and torch do with tensors while the network's code runs.

Where Python asks a tensor for its value it gets a run-time number, or the run is stopped to look closer. What a program
cannot hold is refused: random numbers, changes of the network, shapes that follow from values.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pliant.core._torch_private import is_fake, outside_modes, untraced, watched
from pliant.flow.errors import Final, Leak, Undecided
from pliant.flow.scalar import Sym, holds_sym, is_free, with_numbers

_EVAL = "call net.eval() before compiling"


@dataclass
class Constants:
    """The tensors that belong to the network itself.

    Attributes:
        by_id: those met so far.
        used: those an operator was given since this set was last emptied.
        guarded: tensors that must not be changed in place, with what they are called.
        asleep: whether nobody is to be stopped now.
        analysing: whether tensors that flow through the network are fake now; then all real ones are constants.
    """

    by_id: dict[int, Tensor] = field(default_factory=dict)
    used: dict[int, Tensor] = field(default_factory=dict)
    guarded: dict[int, str] = field(default_factory=dict)
    asleep: bool = False
    analysing: bool = True

    def __contains__(self, tensor: Tensor) -> bool:
        if self.analysing and not is_fake(tensor):
            self.by_id[id(tensor)] = tensor
            return True
        return id(tensor) in self.by_id


def scalar(tensor: Tensor) -> Sym:
    """`tensor.item()` as a run-time number."""
    flat = tensor.reshape(1)
    if tensor.dtype == torch.bool:
        return Sym(flat, "bool")
    if tensor.is_complex():
        raise Leak("a complex number")
    return Sym(flat.to(torch.float64), "float") if tensor.is_floating_point() else Sym(flat.to(torch.int64), "int")


def truth(value: Any) -> Tensor:
    """A tensor or run-time number as a 0-d bool tensor.

    Raises:
        Final: a tensor of several elements.
    """
    tensor: Tensor = value.tensor if isinstance(value, Sym) else value
    with untraced():
        single = tensor.numel() == 1
    if not single:
        raise Final(f"the condition is a tensor of shape {tuple(tensor.shape)}, whose truth is ambiguous",
                    "reduce it first, with .any(), .all() or .max()")  # fmt: skip
    flat = tensor.reshape(1)
    return (flat if flat.dtype == torch.bool else flat != 0).reshape(())


class Reader(TorchFunctionMode):
    """Answers for tensors when Python asks them for numbers.

    Args:
        constants: the network's own tensors, whose numbers are known.
    """

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.constants = constants

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.constants.asleep:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _SIZES or func == _SHAPE:
            with untraced():
                return func(*args, **kwargs)
        handler = _HANDLERS.get(name)
        if handler is not None and args and isinstance(args[0], Tensor):
            if name not in _STRUCTURAL and args[0] in self.constants:
                with outside_modes():
                    return func(*args, **kwargs)
            result = handler(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        if holds_sym((args, kwargs)):
            return with_numbers(func, args, kwargs)
        if func is functional.batch_norm and self.constants.analysing:
            own = _norm_of(args, kwargs)
            if own is not None and all(item in self.constants for item in own):
                self.constants.used.update((id(item), item) for item in own)
                return torch.empty_like(args[0])  # fake tensors take milliseconds to say that it is like the input
        if name in _RECURRENT and self.constants.analysing and not kwargs:
            found = self._recurrent(args)
            if found is not None:
                return found
        return func(*args, **kwargs)

    def _recurrent(self, args: Any) -> Any:
        """What a recurrent layer gives for a sequence of free length, which torch would go through step by step."""
        x, states, weights = args[0], args[1], args[2] if len(args) == 9 else None
        first = states if isinstance(states, Tensor) else states[0]
        if weights is None or not isinstance(weights, list | tuple) or args[6] or not any(map(is_free, x.shape)):
            return None
        if len(weights) != args[4] * (2 if args[7] else 1) * (4 if args[3] else 2):
            return None  # with projections
        self.constants.used.update((id(item), item) for item in weights if item in self.constants)
        width = first.shape[-1] * (2 if args[7] else 1)
        after = [torch.empty_like(item) for item in ([states] if isinstance(states, Tensor) else states)]
        return (x.new_empty((*x.shape[:-1], width)), *after)


def _norm_of(args: Any, kwargs: Any) -> list[Tensor] | None:
    """The tensors of a BatchNorm that uses its statistics; None where it does not, or they do not fit its input."""
    given = dict(zip(("input", "running_mean", "running_var", "weight", "bias", "training"), args)) | kwargs
    x, own = given["input"], [given.get(name) for name in ("running_mean", "running_var", "weight", "bias")]
    if given.get("training") or own[0] is None or own[1] is None or not isinstance(x, Tensor):
        return None
    tensors = [item for item in own if isinstance(item, Tensor)]
    with untraced():
        fits = is_fake(x) and x.dim() > 1 and all(item.shape == x.shape[1:2] for item in tensors)
        return tensors if fits and len({item.dtype for item in [x, *tensors]}) == 1 else None


def _item(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    with untraced():
        single = args[0].numel() == 1
    return scalar(args[0]) if single else NotImplemented  # torch says what is wrong


def _bool(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    truth(args[0])
    raise Undecided()


def _value(what: str) -> Callable[..., Any]:
    def refuse(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
        raise Leak(what)

    return refuse


def _tolist(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    def listed(tensor: Tensor) -> Any:
        return scalar(tensor) if tensor.dim() == 0 else [listed(row) for row in tensor.unbind()]

    return listed(args[0])


def _numpy(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    raise Final("numpy needs the values of a tensor", "use torch functions instead of numpy")


def _equal(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    one, other = args[0], args[1]
    if one.shape != other.shape:
        return False
    return Sym((one == other).all(), "bool")


def _allclose(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    return Sym(_close(*args, **kwargs).all(), "bool")


def _isclose(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    return _close(*args, **kwargs)


def _close(one: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """`torch.isclose`, which has no ONNX form."""
    near = (one == other) | ((one - other).abs() <= atol + rtol * other.abs())
    return near | (one.isnan() & other.isnan()) if equal_nan else near


def _numbered(reader: Reader, index: Any) -> bool:
    if isinstance(index, Sym):
        return True
    whole = isinstance(index, Tensor) and index.dim() == 0 and index.dtype != torch.bool
    return whole and index not in reader.constants


def _getitem(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[i]` with an index known at run time."""
    x, index = args
    items = list(index) if isinstance(index, tuple) else [index]
    if not any(_numbered(reader, item) for item in items):
        return NotImplemented
    if any(isinstance(item, Tensor | list) and not _numbered(reader, item) for item in items):
        raise Leak("one of several indices")
    used = sum(item is not None and item is not Ellipsis for item in items)
    plain: list[Any] = []
    chosen: list[tuple[int, Tensor]] = []
    axis = 0
    for item in items:
        if _numbered(reader, item):
            chosen.append((axis, item.tensor if isinstance(item, Sym) else item))
            plain.append(slice(None))
        else:
            plain.append(item)
        axis += (x.dim() - used) if item is Ellipsis else 0 if isinstance(item, int) else 1
    found = x[tuple(plain)]
    for axis, tensor in reversed(chosen):
        found = found.index_select(axis, _positive(tensor, found.shape[axis])).squeeze(axis)
    return found


def _positive(index: Tensor, size: int) -> Tensor:
    index = index.to(torch.int64).reshape(1)
    return torch.where(index < 0, index + size, index)


def _setitem(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    """`x[i] = value` with an index known at run time, after whole axes alone."""
    x, index, value = args
    items = list(index) if isinstance(index, tuple) else [index]
    numbered = [number for number, item in enumerate(items) if _numbered(reader, item)]
    if not numbered:
        return NotImplemented
    axis = numbered[0]
    if len(numbered) > 1 or any(item != slice(None) for n, item in enumerate(items) if n != axis):
        raise Leak("one of several indices")
    tensor = items[axis].tensor if isinstance(items[axis], Sym) else items[axis]
    place = x.select(axis, 0)
    if isinstance(value, Sym):
        value = value.tensor
    value = torch.as_tensor(value, dtype=x.dtype).expand(place.shape).unsqueeze(axis)
    x.index_copy_(axis, _positive(tensor, x.shape[axis]), value)
    return None


def _contains(reader: Reader, func: Any, args: Any, kwargs: Any) -> Any:
    return Sym((args[0] == args[1]).any(), "bool")


_HANDLERS: dict[str, Callable[..., Any]] = {
    "item": _item, "__bool__": _bool, "is_nonzero": _bool, "__float__": _value("a float"), "__int__": _value("an int"),
    "__index__": _value("an index or a size"), "__complex__": _value("a complex number"), "tolist": _tolist,
    "numpy": _numpy, "__array__": _numpy, "__format__": _value("a part of a string"), "equal": _equal,
    "__repr__": _value("a string"), "allclose": _allclose, "isclose": _isclose,
    "__getitem__": _getitem, "__setitem__": _setitem,
}  # fmt: skip
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_SIZES = frozenset({"size", "numel", "nelement", "__len__", "dim", "ndimension", "stride"})
_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_STRUCTURAL = frozenset({"__getitem__", "__setitem__", "equal", "allclose", "isclose"})
"""Handlers that look at more than the first argument."""


class Watch:
    """Looks at every operator.

    Args:
        constants: the network's own tensors.
        net: the network.
    """

    def __init__(self, constants: Constants, net: nn.Module) -> None:
        self.constants, self.net = constants, net

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse an operator, or note which of the network's tensors it uses."""
        name = func._schema.name.partition("::")[2]
        if name in ("lift_fresh", "lift_fresh_copy", "detach_", "_to_copy"):
            if name == "_to_copy":
                self._use(args)
            return
        self._use((args, kwargs))
        self._check_random(func, name, args, kwargs)
        if "batch_norm" in name and self._flag(func, args, kwargs, ("training", "train")):
            raise Final("BatchNorm updates its statistics: the network is in training mode", _EVAL)
        for place, argument in enumerate(func._schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            if written and id(value) in self.constants.guarded:
                name = self.constants.guarded[id(value)]
                reason = f"{name} is changed in place, and another variable shares its memory"
                raise Final(reason, "make a clone() of it first")
            if written and isinstance(value, Tensor) and value in self.constants:
                raise Final(
                    "a tensor of the network is changed", f"pass it on as an input and an output; {self._mode()}"
                )

    def _mode(self) -> str:
        training = any(module.training for module in self.net.modules())
        return _EVAL if training else "a program has no memory between runs"

    def _use(self, value: Any) -> None:
        if isinstance(value, Tensor):
            if value in self.constants:
                self.constants.used[id(value)] = value
        elif isinstance(value, list | tuple):
            for item in value:
                self._use(item)
        elif isinstance(value, dict):
            self._use(tuple(value.values()))

    @staticmethod
    def _flag(func: Any, args: Any, kwargs: Any, names: tuple[str, ...]) -> bool:
        for place, argument in enumerate(func._schema.arguments):
            if argument.name in names:
                return bool(args[place] if place < len(args) else kwargs.get(argument.name, False))
        return False

    def _check_random(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return
        chance = {argument.name: place for place, argument in enumerate(func._schema.arguments)}
        for key in ("dropout_p", "p"):
            if key in chance and "scaled_dot" in name:
                place = chance[key]
                if not (args[place] if place < len(args) else kwargs.get(key, 0.0)):
                    return
        if "dropout" in name and not self._flag(func, args, kwargs, ("train",)):
            return
        if any(module.training for module in self.net.modules()):
            raise Final(f"random numbers are drawn ({name}): the network is in training mode", _EVAL)
        raise Final(f"random numbers are drawn ({name})", "draw them outside and give them as an input")


class Held:
    """What a network's modules hold in lists, dicts and sets; looked up once, because nothing may change it.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Module) -> None:
        self.watched = False
        modules = list(net.modules())
        self.own = {id(module) for module in modules}
        self.values = [
            (type(module).__name__, name, value, _content(value))
            for module in modules
            for name, value in vars(module).items()
            if isinstance(value, list | dict | set) and not name.startswith("_")
        ]


@contextmanager
def unchanged(held: Held) -> Iterator[Callable[[], None]]:
    """While it lasts, no attribute of any module can be set; the function it gives refuses changed lists and dicts."""
    set_one, delete_one = nn.Module.__setattr__, nn.Module.__delattr__

    def refuse(module: nn.Module, name: str, *value: Any) -> None:
        if id(module) not in held.own:
            (set_one if value else delete_one)(module, name, *value)
            return
        raise Final(f"self.{name} of {type(module).__name__} is set: a side effect",
                    "return what is to be remembered, or pass it on in a variable")  # fmt: skip

    def check() -> None:
        for owner, name, value, content in held.values:
            now = _content(value)
            if len(now) != len(content) or any(a is not b for a, b in zip(now, content, strict=True)):
                value.clear()
                _restore(value, content)
                raise Final(
                    f"self.{name} of {owner} is changed: a side effect", "collect it in a variable and return it"
                )

    if held.watched:
        yield check
        return
    nn.Module.__setattr__, nn.Module.__delattr__ = refuse, refuse  # type: ignore[method-assign, assignment]
    held.watched = True
    try:
        yield check
    finally:
        nn.Module.__setattr__, nn.Module.__delattr__ = set_one, delete_one  # type: ignore[method-assign]
        held.watched = False


def _content(value: Any) -> list[Any]:
    return [part for pair in value.items() for part in pair] if isinstance(value, dict) else list(value)


def _restore(value: Any, content: list[Any]) -> None:
    if isinstance(value, dict):
        value.update(zip(content[::2], content[1::2], strict=True))
    elif isinstance(value, list):
        value.extend(content)
    else:
        value.update(content)


@contextmanager
def reading(constants: Constants, net: nn.Module, mode: Any = None) -> Iterator[None]:
    """Everything above, switched on; `mode` is a fake mode, or None where real tensors flow."""
    with ExitStack() as stack:
        if mode is not None:
            stack.enter_context(mode)
            stack.enter_context(watched(Watch(constants, net)))
        stack.enter_context(Reader(constants))
        stack.enter_context(torch.no_grad())
        yield
