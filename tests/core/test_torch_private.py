"""One test per private torch name in `pliant/core/_torch_private.py`: a new torch that breaks one is told here."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pliant.core._torch_private import (
    always_true,
    backward_pass,
    compiled_call,
    compiled_from,
    expression_of,
    fake_mode,
    free_sizes,
    is_fake,
    is_overload,
    memory_of,
    no_onnx_log,
    outside_modes,
    set_compiled_call,
    storage_users,
    switches_gradients,
    untraced,
    value_errors,
    version_of,
    watched,
)


class Adds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    return torch.export.export(Adds(), (torch.zeros(2),))


def test_overloads_are_told_from_other_callables(exported: torch.export.ExportedProgram) -> None:
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert targets
    assert all(is_overload(target) for target in targets)
    assert not any(is_overload(target) for target in (torch.ops.aten.add, torch.add, "add", len))


def test_a_failing_onnx_export_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Sinc(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sinc(x)

    with no_onnx_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(torch.onnx.errors.UnsupportedOperatorError):
            torch.onnx.export(Sinc(), (torch.zeros(2),), str(tmp_path / "net.onnx"), dynamo=False, opset_version=17)
    assert capfd.readouterr().out == ""


def test_backward_passes_are_told_apart() -> None:
    seen: list[int] = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda grad: seen.append(backward_pass()))  # type: ignore[no-untyped-call]
    for _ in range(2):
        (x * 2 + x).sum().backward()  # type: ignore[no-untyped-call]
    assert len(seen) == len(set(seen)) == 2
    assert min(seen) >= 0
    assert backward_pass() == -1


def test_a_compiled_module_knows_what_it_was_made_from() -> None:
    module = nn.Linear(2, 3)
    assert compiled_from(torch.compile(module, backend="eager")) is module
    assert compiled_from(module) is None


def test_users_of_memory_are_counted() -> None:
    x = torch.zeros(4)
    assert storage_users(x) == 1
    other = x.detach()
    part = x[1:]
    assert storage_users(x) == storage_users(part) == 3
    del other, part
    assert storage_users(x) == 1
    weight = nn.Parameter(torch.zeros(4))
    weight.sum().backward()  # type: ignore[no-untyped-call]
    assert storage_users(torch.as_tensor(weight.grad)) == 1


def test_writes_in_place_are_counted() -> None:
    tensor = torch.zeros(4)
    before = version_of(tensor)
    tensor[:2].add_(1)
    assert version_of(tensor) > before


def test_what_compile_put_in_place_can_be_taken_out_and_put_back() -> None:
    module = nn.Linear(2, 3)
    assert compiled_call(module) is None
    module.compile(backend="eager")
    made = compiled_call(module)
    assert made is not None
    set_compiled_call(module, None)
    assert compiled_call(module) is None
    assert module(torch.zeros(1, 2)).shape == (1, 3)
    set_compiled_call(module, made)
    assert compiled_call(module) is made


def test_fake_tensors_have_shapes_and_no_numbers() -> None:
    with fake_mode():
        x = torch.ones(2, 3)
        y = x @ torch.nn.Parameter(torch.ones(3, 4))
    assert is_fake(x)
    assert (is_fake(y), tuple(y.shape)) == (True, (2, 4))
    assert not is_fake(torch.ones(1))
    with pytest.raises(value_errors()):
        x.sum().item()
    with pytest.raises(value_errors()):
        x.nonzero()


def test_operators_can_be_watched_and_modes_left() -> None:
    seen = []
    real = torch.ones(2)
    with fake_mode(), watched(lambda func, args, kwargs: seen.append(str(func))):
        real + 1
        with outside_modes():
            assert float(real.sum()) == 2.0
    assert seen == ["aten.add.Tensor"]


def test_switches_of_gradients_are_known() -> None:
    def quiet(x: Tensor) -> Tensor:
        with torch.no_grad():
            return x + 1

    graph = make_fx(quiet, pre_dispatch=True)(torch.ones(2)).graph
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    assert list(map(switches_gradients, calls)) == [True, False, True]


def test_views_share_the_name_of_their_memory() -> None:
    x = torch.ones(4)
    assert memory_of(x) == memory_of(x[1:])
    assert memory_of(x) != memory_of(x.clone())


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*is deprecated:DeprecationWarning")
def test_tracing_can_be_suspended() -> None:
    sizes = []

    def traced(x: Tensor) -> Tensor:
        with untraced():
            sizes.append(x.numel())
        return x + 1

    torch.jit.trace(traced, torch.ones(3))  # type: ignore[no-untyped-call]
    assert type(sizes[0]) is int


def test_sizes_can_be_symbols_and_what_is_taken_for_granted_is_noted() -> None:
    facts: list[str] = []
    mode, symbols = free_sizes({"L": 12}, lambda fact: facts.append(str(fact)))
    size = symbols["L"]
    with mode:
        flat = torch.empty(1, size, 4).flatten()
    assert str(expression_of(flat.shape[0])) == f"4*{size}"
    assert always_true(size > 1)
    assert not always_true(size > 5)
    assert not facts
    assert size > 5
    assert facts == [f"{size} > 5"]
    name = str(size)
    assert int(size) == 12
    assert facts[1:] == [f"Eq({name}, 12)"]
