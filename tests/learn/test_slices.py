"""A step on slices moves nothing outside and equals, inside, the step of an optimizer that holds just the slice."""

import copy
import gc
import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.core.parts import Runs
from pliant.learn import slices as slices_module
from pliant.learn import step_slices

OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(torch.optim.SGD, lr=0.1, weight_decay=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.1, weight_decay=0.01),
    "amsgrad": partial(torch.optim.Adam, lr=0.1, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "adamw-foreach": partial(torch.optim.AdamW, lr=0.1, foreach=True),
    "adamw-fused": partial(torch.optim.AdamW, lr=0.1, fused=True),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.9, centered=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
    "nadam": partial(torch.optim.NAdam, lr=0.1),
}
INDICES: dict[str, tuple[Any, Any]] = {
    "prefix": (slice(0, 3), slice(None, 4)),
    "middle": (slice(2, 5), slice(None)),
    "strided": (slice(None), slice(1, 6, 2)),
    "vector": (torch.tensor([4, 0, 2]), slice(1, 3)),
    "outer": (torch.tensor([4, 0]), torch.tensor([5, 1, 2])),
    "permutation": (torch.tensor([4, 3, 2, 0, 1]), slice(None)),
    "runs": (slice(0, 3), Runs(1, 2, 3, 2)),
    "runs and vector": (torch.tensor([4, 0]), Runs(0, 2, 3, 2)),
}


def _places(entry: Any, size: int) -> Tensor:
    if isinstance(entry, Runs):
        return torch.cat([torch.arange(entry.length) + entry.begin + i * entry.step for i in range(entry.count)])
    return torch.arange(size)[entry]


def _pick(tensor: Tensor, index: Any) -> Tensor:
    rows, columns = (_places(entry, size) for entry, size in zip(index, tensor.shape, strict=True))
    return tensor[rows][:, columns]


def _outside(tensor: Tensor, index: Any) -> Tensor:
    mask = torch.ones_like(tensor, dtype=torch.bool)
    rows, columns = (_places(entry, size) for entry, size in zip(index, tensor.shape, strict=True))
    mask[rows[:, None], columns[None]] = False
    return tensor[mask]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", INDICES)
def test_ten_steps_on_a_slice_equal_a_small_parameter(name: str, kind: str) -> None:
    index = INDICES[kind]
    generator = torch.Generator().manual_seed(1)
    full = nn.Parameter(torch.randn(5, 6, generator=generator))
    before = full.detach().clone()
    small = nn.Parameter(_pick(before, index).clone())
    wide, narrow = OPTIMIZERS[name]([full]), OPTIMIZERS[name]([small])
    for _ in range(10):
        full.grad = torch.randn(5, 6, generator=generator)
        small.grad = _pick(full.grad, index).clone()
        kept = full.grad
        step_slices(wide, {full: index})
        narrow.step()
        assert full.grad is kept
    torch.testing.assert_close(_pick(full.detach(), index), small.detach(), rtol=0, atol=0)
    assert torch.equal(_outside(full.detach(), index), _outside(before, index))
    for key, value in wide.state[full].items():
        if isinstance(value, torch.Tensor) and value.dim():
            torch.testing.assert_close(_pick(value, index), narrow.state[small][key], rtol=0, atol=0)
            assert not _outside(value, index).any()
            assert value.shape == full.shape


@pytest.mark.parametrize("name", ["momentum", "adam", "adamw", "rmsprop"])
def test_random_slices_leave_params_and_state_outside_bit_identical(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = [nn.Parameter(torch.randn(8, 4, 3, 3, generator=generator)), nn.Parameter(torch.randn(8))]
    whole = nn.Parameter(torch.randn(3))
    optimizer = OPTIMIZERS[name]([*weights, whole])
    for step in range(10):
        for parameter in (*weights, whole):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        width = int(torch.randint(1, 9, (), generator=generator))
        slices = {weights[0]: (slice(0, width), slice(0, 2), slice(None), slice(None)), weights[1]: (slice(0, width),)}
        before = [p.detach().clone() for p in weights]
        states = [{k: v.clone() for k, v in optimizer.state[p].items()} if step else {} for p in weights]
        still = whole.detach().clone()
        step_slices(optimizer, slices)
        assert not torch.equal(whole.detach(), still)
        assert torch.equal(weights[0].detach()[width:], before[0][width:])
        assert torch.equal(weights[0].detach()[:, 2:], before[0][:, 2:])
        assert torch.equal(weights[1].detach()[width:], before[1][width:])
        assert not torch.equal(weights[1].detach()[:width], before[1][:width])
        for parameter, state in zip(weights, states):
            for key, value in state.items():
                if value.dim():
                    assert torch.equal(optimizer.state[parameter][key][width:], value[width:])


def test_an_optimizer_that_reads_shapes_gets_the_shape_of_the_slice() -> None:
    seen: list[tuple[int, ...]] = []

    class Curious(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.extend(tuple(p.shape) for group in self.param_groups for p in group["params"])
            super().step(closure)

    parameter, index = nn.Parameter(torch.ones(5, 6)), INDICES["runs"]
    parameter.grad = torch.ones(5, 6)
    step_slices(Curious([parameter], lr=0.1), {parameter: index})
    assert seen == [(3, 4)]
    assert torch.equal(_pick(parameter.detach(), index), torch.full((3, 4), 0.9))
    assert torch.equal(_outside(parameter.detach(), index), torch.ones(18))


def test_the_state_keeps_its_memory_and_serves_whole_steps_afterwards() -> None:
    parameter = nn.Parameter(torch.ones(4, 4))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    pointer = parameter.data_ptr()
    for rows in (2, 4, 3, 4):
        parameter.grad = torch.ones(4, 4)
        step_slices(optimizer, {parameter: (slice(0, rows), slice(None))})
    optimizer.step()
    assert parameter.data_ptr() == pointer
    assert optimizer.state[parameter]["step"] == 5
    torch.autograd.backward(parameter.sum() * 2)  # autograd still knows the parameter by its full shape
    assert parameter.grad is not None
    assert parameter.grad.shape == (4, 4)


def _train(slices: list[tuple[Any, ...]], between: Any = None, **options: Any) -> nn.Parameter:
    """Steps on slices; `between` happens after every one of them."""
    generator = torch.Generator().manual_seed(3)
    parameter = nn.Parameter(torch.randn(8, 6, generator=generator))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, **options)
    for index in slices:
        parameter.grad = torch.randn(8, 6, generator=generator)
        step_slices(optimizer, {parameter: index})
        if between is not None:
            between(parameter, optimizer)
    return parameter


def test_remembered_slices_give_what_new_ones_give() -> None:
    known = [(slice(0, n), slice(0, m)) for n, m in ((4, 3), (8, 6), (2, 6))]
    remembered = _train([known[i % 3] for i in range(12)])
    anew = _train([tuple(known[i % 3]) for i in range(12)], lambda *_: slices_module._parts.clear())
    assert torch.equal(remembered, anew)
    every = [(slice(0, 1 + i % 8), slice(0, 1 + i % 5)) for i in range(3 * slices_module._REMEMBERED)]
    assert torch.equal(_train(every), _train(every, lambda *_: slices_module._parts.clear()))


def _moved(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    parameter.data = parameter.data.clone()


def _turned(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    parameter.data = parameter.data.t().contiguous().t()


def _state_loaded(parameter: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize("between", [_moved, _turned, _state_loaded])
def test_what_lies_elsewhere_by_now_is_noticed(between: Any) -> None:
    index = (slice(0, 4), slice(1, 3))
    moved, still = _train([index] * 5, between), _train([index] * 5)
    assert torch.equal(moved, still)
    assert not torch.equal(moved, _train([index] * 4))


def test_nothing_is_remembered_of_an_optimizer_that_is_gone() -> None:
    gc.collect()
    before = len(slices_module._parts)
    parameter = _train([(slice(0, 4), slice(0, 3))] * 2)
    gc.collect()
    assert len(slices_module._parts) == before
    assert sys.getrefcount(parameter) < 4


def test_parameters_without_gradient_stay() -> None:
    parameter = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    step_slices(optimizer, {parameter: (slice(0, 2),)})
    assert torch.equal(parameter.detach(), torch.ones(4))
    assert not optimizer.state.get(parameter)


def test_everything_is_put_back_when_the_step_raises() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            raise RuntimeError("broken")

    parameter = nn.Parameter(torch.ones(4, 3))
    optimizer = Broken([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(4, 3)
    with pytest.raises(RuntimeError, match="broken"):
        step_slices(optimizer, {parameter: (slice(0, 2), slice(None))})
    assert parameter.shape == parameter.grad.shape == (4, 3)
    assert optimizer.state[parameter]["momentum_buffer"].shape == (4, 3)


def test_an_index_out_of_range_changes_nothing() -> None:
    first, second = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([first, second], lr=0.1)
    first.grad, second.grad = torch.ones(4), torch.ones(4)
    with pytest.raises(IndexError):
        step_slices(optimizer, {first: (slice(0, 2),), second: (torch.tensor([9]),)})
    assert torch.equal(first.detach(), torch.ones(4))
    assert torch.equal(second.detach(), torch.ones(4))


@pytest.mark.parametrize(
    ("index", "error", "text"),
    [
        ((slice(0, 2),), ValueError, "needs 2 slices"),
        ((slice(0, 2), torch.tensor([True, False, True])), TypeError, "int64"),
        ((slice(0, 2), 1), TypeError, "int"),
    ],
)
def test_bad_indices_are_named(index: Any, error: type[Exception], text: str) -> None:
    parameter = nn.Parameter(torch.ones(4, 3))
    parameter.grad = torch.ones(4, 3)
    with pytest.raises(error, match=text):
        step_slices(torch.optim.SGD([parameter], lr=0.1), {parameter: index})


@pytest.mark.parametrize("factory", [torch.optim.LBFGS, torch.optim.Rprop])
def test_optimizers_that_cannot_be_sliced_are_refused(factory: Any) -> None:
    parameter = nn.Parameter(torch.ones(4, 3))
    parameter.grad = torch.ones(4, 3)
    with pytest.raises(PliantError, match=f"{factory.__name__} cannot step slices"):
        step_slices(factory([parameter], lr=0.1), {parameter: (slice(0, 2), slice(None))})
    assert torch.equal(parameter.detach(), torch.ones(4, 3))


def test_state_of_another_shape_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(4, 3))
    parameter.grad = torch.ones(4, 3)
    optimizer = torch.optim.Adafactor([parameter], lr=0.1)
    for _ in range(2):  # found after the step that makes the state, and before every later one
        with pytest.raises(PliantError, match="Adafactor keeps a state"):
            step_slices(optimizer, {parameter: (slice(0, 2), slice(None))})
    assert parameter.shape == (4, 3)
