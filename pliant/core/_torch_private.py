"""The one file that touches private torch names. `tests/core/test_torch_private.py` says what broke, one test each."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn


def is_overload(target: Any) -> bool:
    """Whether a call target of an fx graph is an ATen (or custom) operator overload."""
    return isinstance(target, torch._ops.OpOverload)


def switches_gradients(target: Any) -> bool:
    """Whether a call target of an fx graph says that gradients are kept, or not kept, from there on."""
    return target is torch._C._set_grad_enabled


def backward_pass() -> int:
    """The number of the backward pass that runs now; -1 outside of any."""
    return int(torch._C._current_graph_task_id())


def storage_users(tensor: Tensor) -> int:
    """How many tensors share the memory of this one, itself included."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # less the storage object made here


@contextmanager
def no_onnx_log() -> Iterator[None]:
    """Keeps the tracing ONNX exporter from printing its whole graph to stdout when it fails.

    `torch.onnx` switches that log on by itself: its check whether it was on is a function it forgets to call.
    """
    with mock.patch.object(torch._C, "_jit_onnx_log", return_value=None):
        yield


def compiled_from(module: Any) -> Any:
    """The module that `torch.compile` made this one from, or None."""
    return getattr(module, "_orig_mod", None) if isinstance(module, torch._dynamo.OptimizedModule) else None


def version_of(tensor: Tensor) -> int:
    """How many times a tensor, or a view of it, was written to in place."""
    return int(tensor._version)


def compiled_call(module: nn.Module) -> Any:
    """What `module.compile()` has made its calls run, or None."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Let a module's calls run what `compiled_call` gave, or its own code (None)."""
    module._compiled_call_impl = call


def fake_mode() -> Any:
    """A mode under which tensors have shapes and dtypes but no numbers; real tensors may take part."""
    return torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)


def is_fake(value: Any) -> bool:
    """Whether a tensor has no numbers."""
    return isinstance(value, torch._subclasses.fake_tensor.FakeTensor)


def value_errors() -> tuple[type[Exception], ...]:
    """What a fake mode raises where numbers, or a shape that follows from them, are asked for."""
    fake = torch._subclasses.fake_tensor
    return fake.DataDependentOutputException, fake.DynamicOutputShapeException


def outside_modes() -> Any:
    """A context in which no dispatch mode is active: real tensors can be read."""
    return torch.utils._python_dispatch._disable_current_modes()


def watched(before: Callable[[Any, tuple[Any, ...], dict[str, Any]], None]) -> Any:
    """A mode that hands every operator, with its arguments, to `before` and then runs it."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            before(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    return Watch()  # type: ignore[no-untyped-call]


def memory_of(tensor: Tensor) -> Any:
    """Names the memory of a tensor, fake or not; views of it have the same."""
    return tensor.untyped_storage()._cdata


@contextmanager
def untraced() -> Iterator[None]:
    """While it lasts, `torch.jit.trace` (which the ONNX exporter uses) does not look: sizes are plain numbers."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def free_sizes(sizes: Mapping[str, int], noted: Callable[[Any], None]) -> tuple[Any, dict[str, torch.SymInt]]:
    """A fake mode in which some sizes are symbols, and these symbols.

    Args:
        sizes: name to a size the symbol stands for where Python needs a number; all are taken to be 2 or more.
        noted: is given every fact about the symbols (a sympy relation) that code took for granted, when it does.
    """
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

    class Named(torch._guards.Source):
        label = ""

        @property
        def _name_template(self) -> str:
            return self.label

    class Noting(ShapeEnv):
        def evaluate_expr(self, *args: Any, **kwargs: Any) -> Any:
            before = len(self.guards)
            found = super().evaluate_expr(*args, **kwargs)
            for guard in self.guards[before:]:
                noted(guard.expr)
            return found

    env = Noting()
    symbols = {}
    for name, size in sizes.items():
        source = Named()
        object.__setattr__(source, "label", name)
        symbol = env.create_symbol(size, source=source, dynamic_dim=DimDynamic.DYNAMIC)
        symbols[name] = env.create_symintnode(symbol, hint=size, source=source)
    mode = torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True, shape_env=env)
    return mode, symbols  # type: ignore[return-value]


def always_true(relation: Any) -> bool:
    """Whether a relation of free sizes is known to hold, without taking it for granted."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(relation))


def expression_of(size: Any) -> Any:
    """The sympy expression behind a `torch.SymInt` or `torch.SymFloat`."""
    return size.node.expr
