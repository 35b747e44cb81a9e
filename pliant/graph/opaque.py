"""Opaque sub-modules: what export cannot follow runs as it is, between fixed inputs and outputs.

While a network is traced, such a sub-module is one custom operator. Which sizes its results have is learnt from real
runs: on the example, on one row more, and on other values.
"""

import ast
import copy
import inspect
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from pliant.core import PliantError, copied, seeded
from pliant.core.forms import Form, Slot, leaves_of, pack, rebuilt
from pliant.graph.ir import OpaqueCall

OPERATOR = "pliant.opaque.default"
_PLACES: dict[str, "Place"] = {}
_serial = count()
_APPLY = Function.__dict__["apply"]


@dataclass(frozen=True)
class Offence:
    """Why a sub-module cannot be followed, and the line."""

    reason: str
    line: str


@dataclass
class Record:
    """One call of a sub-module in a real run: the shapes that went in, and what came out."""

    shapes: list[tuple[int, ...]]
    output: Any
    results: list[tuple[tuple[int, ...], torch.dtype, torch.device]]


@dataclass
class Place:
    """One call of an opaque sub-module while the network is traced.

    Args:
        path: of the sub-module, or `path:method`.
        module: the real one.
        offence: why it is opaque.
        records: this call in each of the real runs.
    """

    path: str
    module: nn.Module
    offence: Offence
    records: list[Record]
    arguments: Any = None
    sized: list[bool] = field(default_factory=list)

    @property
    def call(self) -> OpaqueCall:
        """How the program calls it."""
        return OpaqueCall(self.arguments, pack(self.records[0].output, [], objects=True), split(self.path)[1])

    def in_order(self, tensors: Sequence[Any], sizes: Sequence[Any]) -> list[Any]:
        """Tensors and sizes as they stand among the arguments."""
        left, right = iter(tensors), iter(sizes)
        return [next(right) if sized else next(left) for sized in self.sized]

    def shape(self, result: int, tensors: Sequence[Tensor]) -> list[Any]:
        """The shape of a result, from the operands' where it follows them; free where it depends on values."""
        runs = [record.results[result][0] for record in self.records]
        return [self._size([shape[axis] for shape in runs], tensors) for axis in range(len(runs[0]))]

    def _size(self, seen: list[int], tensors: Sequence[Tensor]) -> Any:
        if len(set(seen)) == 1:
            return seen[0]
        for i, tensor in enumerate(tensors):
            for axis in range(tensor.dim()):
                given = [record.shapes[i][axis] for record in self.records]
                step, rest = divmod(seen[1] - seen[0], (given[1] - given[0]) or 1)  # the second run has more rows
                base = seen[0] - step * given[0]
                if not rest and all(out == step * size + base for out, size in zip(seen, given, strict=True)):
                    return tensor.shape[axis] * step + base
        return torch.library.get_ctx().new_dynamic_size()


torch.library.define("pliant::opaque", "(Tensor[] tensors, SymInt[] sizes, str key) -> Tensor[]")


@torch.library.register_fake("pliant::opaque")  # type: ignore[untyped-decorator]
def _fake(tensors: list[Tensor], sizes: list[Any], key: str) -> list[Tensor]:
    place = _PLACES[key]
    made = []
    for i, (_, dtype, device) in enumerate(place.records[0].results):
        made.append(torch.empty(place.shape(i, tensors), dtype=dtype, device=device))
    return made


@torch.library.impl("pliant::opaque", "CompositeExplicitAutograd")
def _real(tensors: list[Tensor], sizes: list[Any], key: str) -> list[Tensor]:
    place = _PLACES[key]
    watched: Any = Function.__dict__["apply"]
    setattr(Function, "apply", _APPLY)  # noqa: B010  # its own functions are no part of the trace
    try:
        return [leaf.clone() for leaf in place.call(place.module, place.in_order(tensors, sizes))]
    finally:
        setattr(Function, "apply", watched)  # noqa: B010


class Heard:
    """The form of what a network returned last, and its calls of opaque sub-modules by key.

    Attributes of the module itself would be put back by export.
    """

    def __init__(self) -> None:
        self.output: Any = None
        self.places: dict[str, Place] = {}
        self.turns: dict[str, int] = {}


class Wrapped(nn.Module):
    """A network whose arguments and results are flat lists of tensors, with some sub-modules opaque.

    Attributes:
        net: the network.
        form: how it is called.
        whole: whether its parameters are copies.
        heard: what was learnt during its last call.
    """

    def __init__(
        self, net: nn.Module, form: Form, example: tuple[tuple[Any, ...], dict[str, Any]], *, whole: bool = True
    ) -> None:
        super().__init__()
        self.net, self.form, self.whole = net, form, whole
        self._bound = inspect.signature(net.forward).bind(*example[0], **example[1])
        self.heard = Heard()

    def forward(self, *tensors: Tensor) -> list[Any]:
        """The network's tensors, depth first."""
        self.heard.turns.clear()
        bound, leaves = copy.copy(self._bound), iter(tensors)
        bound.arguments = {name: rebuilt(value, leaves) for name, value in self._bound.arguments.items()}
        found: list[Any] = []
        try:
            self.heard.output = pack(self.net(*bound.args, **bound.kwargs), found)
        except TypeError as error:
            if not str(error).startswith("a ") or "among tensors" not in str(error):
                raise
            fix = "return tensors, or tuples, lists, dicts and dataclasses of them"
            raise PliantError(f"the network returns {error}", where=type(self.net).__name__, fix=fix) from error
        return found

    def hide(self, offences: Mapping[str, Offence], runs: Sequence[Sequence[Tensor]]) -> None:
        """Make sub-modules, or single methods of theirs, opaque.

        Args:
            offences: by path, or by `path:method`.
            runs: inputs to learn from: the example, one row more, other values.

        Raises:
            Unsteady: what one of them returns cannot be described.
        """
        if not offences:
            return
        seen = [self._seen(list(offences), runs[0])]
        for inputs in runs[1:]:
            with suppress(RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # inputs it does not take
                seen.append(self._seen(list(offences), inputs))
        for key, offence in offences.items():
            owner, (path, method) = opaque_part(self.net, key), split(key)
            if not seen[0][key] or len({len(records[key]) for records in seen}) != 1:
                raise Unsteady(key, offence)
            calls = [list(each) for each in zip(*(records[key] for records in seen), strict=True)]
            places = [Place(key, copied(owner), offence, each) for each in calls]
            for place in places:
                forms = [pack(record.output, [], objects=True) for record in place.records]
                if forms[0] != forms[-1]:
                    raise Unsteady(key, offence)
            module = self.net.get_submodule(path)
            if method == "forward":
                module._forward_hooks.clear()
                module._forward_pre_hooks.clear()
            module.__dict__[method] = self._stand_in(key, places)

    def _seen(self, keys: Sequence[str], inputs: Sequence[Tensor]) -> dict[str, list[Record]]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _records(cast(Wrapped, copied(self)), keys, inputs)

    def _stand_in(self, key: str, places: Sequence[Place]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            turn = self.heard.turns[key] = self.heard.turns.get(key, -1) + 1
            leaves = leaves_of((args, kwargs), objects=True)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if turn >= len(places) or len(tensors) != len(places[turn].records[0].shapes):
                raise Unsteady(key, places[0].offence)
            place = places[turn]
            place.arguments = rebuilt((args, kwargs), iter([Slot(i) for i in range(len(leaves))]), objects=True)
            place.sized = [not isinstance(leaf, Tensor) for leaf in leaves]
            name = f"{next(_serial)}:{key}"
            self.heard.places[name] = _PLACES[name] = place
            sizes = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
            return rebuilt(place.records[0].output, iter(torch.ops.pliant.opaque(tensors, sizes, name)), objects=True)

        return stand_in

    def forget(self) -> None:
        """Leave nothing of this trace behind."""
        for key in self.heard.places:
            _PLACES.pop(key, None)


class Unsteady(PliantError):
    """What an opaque part returns has no steady form."""

    def __init__(self, key: str, offence: Offence) -> None:
        problem = f"{key} cannot be followed ({offence.reason}), and what it returns has no steady form"
        super().__init__(problem, where=offence.line or None, fix="let it return the same structure every time")
        self.key = key


def _records(wrapped: Wrapped, keys: Iterable[str], inputs: Sequence[Tensor]) -> dict[str, list[Record]]:
    """The calls of some parts in a real run."""
    found: dict[str, list[Record]] = {key: [] for key in keys}
    for key in found:
        waiting: list[list[tuple[int, ...]]] = []

        def before(_: Any, args: Any, kwargs: Any, waiting: Any = waiting) -> None:
            leaves = leaves_of((args, kwargs), objects=True)
            waiting.append([tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)])

        def after(_: Any, args: Any, kwargs: Any, out: Any, key: str = key, waiting: Any = waiting) -> None:
            leaves = leaves_of(out, objects=True)
            slots = iter([Slot(i) for i in range(len(leaves))])
            results = [(tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in leaves]
            found[key].append(Record(waiting.pop(), rebuilt(out, slots, objects=True), results))

        path, method = split(key)
        module = wrapped.net.get_submodule(path)
        if method == "forward":
            module.register_forward_pre_hook(before, prepend=True, with_kwargs=True)
            module.register_forward_hook(after, with_kwargs=True)
            continue

        module.__dict__[method] = _watched(getattr(module, method), before, after)
    wrapped(*[tensor.clone() for tensor in inputs])
    return found


def _watched(run: Callable[..., Any], before: Callable[..., Any], after: Callable[..., Any]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        before(None, args, kwargs)
        out = run(*args, **kwargs)
        after(None, args, kwargs, out)
        return out

    return watched


def split(key: str) -> tuple[str, str]:
    """Path and method of an opaque part."""
    path, _, method = key.partition(":")
    return path, method or "forward"


def opaque_part(net: nn.Module, key: str) -> nn.Module:
    """The sub-module that runs as it is; for a single method a copy of its owner with what the method uses alone."""
    path, method = split(key)
    owner = net.get_submodule(path)
    if method == "forward":
        return owner
    part = copy.copy(owner)
    used = _uses(type(owner), method, set()) or set()
    part.__dict__ = {**owner.__dict__, "_parameters": {}, "_buffers": {}}
    part._modules = {name: module for name, module in owner._modules.items() if name in used}
    return part


def can_stand_alone(net: nn.Module, key: str) -> bool:
    """Whether an opaque part can be told from the rest.

    A method must use no parameter, no buffer, and nothing of its own that any other call may change.
    """
    path, method = split(key)
    if method == "forward":
        return bool(path)
    owner = net.get_submodule(path)
    used = _uses(type(owner), method, set())
    if used is None or used & {*owner._parameters, *owner._buffers, *_written(type(owner))}:
        return False
    values = [owner._modules[name] if name in owner._modules else vars(owner).get(name) for name in used]
    return not any(value.state_dict() if isinstance(value, nn.Module) else leaves_of(value) for value in values)


def _tree(function: Any) -> ast.AST | None:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return None


def _own(tree: ast.AST) -> list[ast.Attribute]:
    """Every `self.name` in a method."""
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [node for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "self"]


def _written(kind: type) -> set[str]:
    """The names of its own that a module sets after it was made."""
    users = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    functions = [f for base in users for name, f in vars(base).items() if inspect.isfunction(f) and name != "__init__"]
    trees = [tree for tree in map(_tree, functions) if tree is not None]
    return {node.attr for tree in trees for node in _own(tree) if not isinstance(node.ctx, ast.Load)}


def _uses(kind: type, method: str, seen: set[str]) -> set[str] | None:
    """The names of its own that a method reads, with the methods that it calls; None where they cannot be told."""
    tree = _tree(getattr(kind, method))
    if tree is None:
        return None
    seen.add(method)
    owned = {id(node.value) for node in _own(tree)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in owned]
    if any(node.id in ("self", "super", "getattr", "vars") for node in names):
        return None
    found = {node.attr for node in _own(tree)}
    for name in sorted(found - seen):
        if callable(getattr(kind, name, None)):
            inner = None if hasattr(nn.Module, name) else _uses(kind, name, seen)
            if inner is None:
                return None
            found |= inner
    return found


def called_parts(error: BaseException, net: nn.Module) -> list[str]:
    """The modules (by path) and methods (`path:method`) that were being called at an error, outermost first."""
    paths = {id(module): path for path, module in net.named_modules()}
    found: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        for frame, _ in traceback.walk_tb(seen.__traceback__):
            owner, name = frame.f_locals.get("self"), frame.f_code.co_name
            if id(owner) in paths and (name == "_call_impl" or not hasattr(nn.Module, name)):
                key = paths[id(owner)] + ("" if name == "_call_impl" else f":{name}")
                if key not in found and (name == "_call_impl" or callable(getattr(type(owner), name, None))):
                    found.append(key)
        seen = seen.__cause__ or seen.__context__
    return found


def other_values(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Inputs like these with other values: normal with their mean and spread, integers in another order."""
    generator = seeded(0, "other values")
    found = []
    for tensor in inputs:
        if tensor.is_floating_point() and tensor.numel() > 1:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            spread, mean = float(tensor.double().std()), float(tensor.double().mean())
            found.append((noise * spread + mean).to(tensor))
        else:
            found.append(tensor.flip(-1) if tensor.dim() else tensor.clone())
    return found


def more_rows(inputs: Sequence[Tensor], axes: Sequence[Iterable[int]]) -> list[Tensor]:
    """Inputs with one index more along the axes of each that are free."""
    found = []
    for tensor, free in zip(inputs, axes, strict=True):
        for axis in free:
            tensor = torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis)
        found.append(tensor)
    return found
