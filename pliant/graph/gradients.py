"""Gradients that a network writes itself (`torch.autograd.Function`), which export would drop without a word.

Export follows the forward of such a function only. Where its backward is the derivative of its forward, nothing is
lost. Where it multiplies the gradient entry by entry (surrogate gradients of spikes, straight-through rounding,
clipped gradients), the function is traced as

    y = f(x).detach() + slope(x).detach() * (x - x.detach())

which has f's value and the written gradient, in plain operators. Anything else is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from pliant.core import PliantError

Apply = Callable[..., Any]


class _Context:
    """Stands in for the context of a function, so that its forward and backward can be called as plain Python."""

    def __init__(self, inputs: Sequence[Any]) -> None:
        self.saved_tensors: tuple[Any, ...] = ()
        self.needs_input_grad = tuple(isinstance(value, Tensor) for value in inputs)

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *_: Any) -> None:
        """Forward-mode derivatives are not used."""

    mark_dirty = mark_non_differentiable = set_materialize_grads = save_for_forward

    @property
    def saved_variables(self) -> tuple[Any, ...]:
        return self.saved_tensors


class Gradients:
    """Takes the place of `Function.apply` while a network is traced.

    Attributes:
        met: whether the network calls functions with a backward of their own.
    """

    def __init__(self) -> None:
        self.met = False
        self._kinds: list[str] = []
        self._place = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note whether such functions are called."""
        with _replaced(self._watch):
            yield

    @contextmanager
    def judging(self) -> Iterator[None]:
        """During one real run: find out what each call's backward does.

        Raises:
            PliantError: a backward that cannot be kept.
        """
        self._kinds = []
        with _replaced(self._judge):
            yield

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """During the trace: write each call so that its gradient is kept."""
        self._place = 0
        with _replaced(self._keep):
            yield

    def _watch(self, original: Apply, function: type[Function], args: Sequence[Any]) -> Any:
        self.met = True
        return original(*args)

    def _judge(self, original: Apply, function: type[Function], args: Sequence[Any]) -> Any:
        self._kinds.append(_kind(function, args))
        return original(*args)

    def _keep(self, original: Apply, function: type[Function], args: Sequence[Any]) -> Any:
        kind = self._kinds[self._place] if self._place < len(self._kinds) else "plain"
        self._place += 1
        if kind == "plain":
            return original(*args)
        context = _Context(args)
        with torch.no_grad():
            value = _forward(function, context, args)
            slopes = _backward(function, context, torch.ones_like(value), args)
        for x, slope in zip(args, slopes, strict=True):
            if slope is not None:
                value = value.detach() + slope.detach() * (x - x.detach())
        return value


@contextmanager
def _replaced(handler: Callable[[Apply, type[Function], Sequence[Any]], Any]) -> Iterator[None]:
    original = Function.__dict__["apply"]

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        own: Apply = original.__get__(None, cls)
        if kwargs or cls.__module__.startswith("torch."):
            return own(*args, **kwargs)
        return handler(own, cls, args)

    Function.apply = classmethod(apply)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Function.apply = original  # type: ignore[method-assign]


def _forward(function: type[Function], context: _Context, args: Sequence[Any]) -> Any:
    if function.setup_context is not Function.setup_context:
        value = function.forward(*args)
        function.setup_context(context, tuple(args), value)
        return value
    return function.forward(context, *args)


def _backward(function: type[Function], context: _Context, grad: Tensor, args: Sequence[Any]) -> list[Any]:
    found = function.backward(context, grad)
    found = found if isinstance(found, tuple) else (found,)
    return [slope if isinstance(slope, Tensor) else None for slope in [*found, *[None] * len(args)][: len(args)]]


def _kind(function: type[Function], args: Sequence[Any]) -> str:
    """plain: the backward is the forward's derivative; slope: it multiplies entry by entry."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        leaves = [_leaf(value) for value in args]
        context = _Context(leaves)
        value = _forward(function, context, leaves)
        if not isinstance(value, Tensor):
            raise _refused(function, "it gives out several values")
        grad = torch.randn(value.shape, dtype=value.dtype, device=value.device)
        own = _backward(function, context, grad, leaves)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        true = dict(zip(map(id, tensors), _derivative(value, tensors, grad), strict=True))
        if all(_close(mine, true.get(id(leaf))) for mine, leaf in zip(own, leaves, strict=True)):
            return "plain"
        ones = _backward(function, context, torch.ones_like(value), leaves)
    for mine, slope in zip(own, ones, strict=True):
        if (mine is None) != (slope is None):
            raise _refused(function, "which inputs get a gradient depends on it")
        if mine is not None and (mine.shape != value.shape or not _close(mine, grad * slope)):
            raise _refused(function, "it mixes entries or is not linear in the gradient")
    return "slope"


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    fresh = value.detach().clone()
    return fresh.requires_grad_() if fresh.is_floating_point() else fresh


def _derivative(value: Tensor, leaves: list[Tensor], grad: Tensor) -> Sequence[Tensor | None]:
    if not value.requires_grad or not leaves:
        return [None] * len(leaves)
    return torch.autograd.grad(value, leaves, grad, allow_unused=True)


def _close(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        given = second if first is None else first
        return given is None or not bool(given.any())
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def _refused(function: type[Function], why: str) -> PliantError:
    return PliantError(
        f"the backward of {function.__name__} cannot be kept in a traced graph ({why})",
        where=f"{function.__module__}.{function.__qualname__}",
        fix="put its call into a sub-module of its own, which then runs as it is, or write it with detach()",
    )
