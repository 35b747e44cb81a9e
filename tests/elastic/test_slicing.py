"""Parts of parameters and their gradients: as torch's own, in memory that is used again."""

import copy
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import nets
from pliant.core import seeded
from pliant.core.parts import Index, Runs, part_of, put
from pliant.elastic import elastic
from pliant.elastic.recipes import Sandwich
from pliant.elastic.slicing import AxisCuts, Cut, Gradients, take
from pliant.graph.analyse import Axis

CUTS: dict[str, tuple[Index, ...]] = {
    "prefix": (slice(0, 3), slice(0, 5)),
    "rows": (slice(0, 3),),
    "middle": (slice(2, 5), slice(None)),
    "runs": (slice(0, 4), Runs(0, 2, 4, 3)),
    "shifted runs": (Runs(1, 1, 3, 2), Runs(1, 2, 4, 2)),
    "vector": (torch.tensor([0, 1, 5]), slice(1, 9)),
    "vectors": (torch.tensor([0, 4]), torch.tensor([0, 1, 2, 7])),
    "vector and runs": (torch.tensor([0, 4]), Runs(0, 3, 6, 2)),
}


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter goes the way of the large ones."""
    monkeypatch.setattr(sys.modules["pliant.elastic.slicing"], "_LARGE", 1)


def indices(entry: Index, size: int) -> Tensor:
    if isinstance(entry, Runs):
        return torch.cat([torch.arange(entry.length) + entry.begin + i * entry.step for i in range(entry.count)])
    return torch.arange(size)[entry]


def by_hand(tensor: Tensor, cut: tuple[Index, ...]) -> Tensor:
    for axis, entry in enumerate(cut):
        tensor = tensor.index_select(axis, indices(entry, tensor.shape[axis]))
    return tensor


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(6, 12, generator=seeded(0, "slicing")))


@pytest.mark.parametrize("name", CUTS)
def test_parts_and_their_gradients_are_those_of_indexing(name: str) -> None:
    cut, own, other, gradients = CUTS[name], parameter(), parameter(), Gradients()
    for step in range(3):
        mine, theirs = take(own, cut, gradients), by_hand(other, cut)
        assert torch.equal(mine, theirs)
        weight = torch.randn(theirs.shape, generator=seeded(step, "weight"))
        (mine * weight).sum().backward()  # type: ignore[no-untyped-call]
        (theirs * weight).sum().backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        assert other.grad is not None
        assert torch.equal(own.grad, other.grad)
        own.grad = other.grad = None


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["prefix", "middle"])
def test_small_parameters_are_seen_in_one_operation(name: str, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["pliant.elastic.slicing"], "_LARGE", 1000)
    own = parameter()
    if turned:
        own = nn.Parameter(own.detach().t().contiguous().t())
    cut = Cut.of(CUTS[name], own.shape)
    part = take(own, cut, Gradients())
    assert torch.equal(part, by_hand(own, cut))
    assert part.data_ptr() == part_of(own.detach(), cut).data_ptr()
    assert type(part.grad_fn).__name__ == "AsStridedBackward0"
    part.sum().backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    assert torch.equal(own.grad, by_hand_gradient(cut))
    assert own.grad.stride() == own.stride()
    whole = Cut.of((slice(0, 6), slice(None)), own.shape)
    assert take(own, whole, Gradients()) is own


def test_a_state_is_cut_once_for_the_same_counts() -> None:
    net = elastic(nets.mlp((6,), 4, hidden=(8, 8)), torch.zeros(2, 6))
    whole, knob = net.space.largest(), next(iter(net.space))
    found = []
    for kept in (4, 8, 4):
        net.activate(whole.replace({knob.name: kept}))
        found.append(dict(zip(net._runner.states, net._state[3], strict=True)))
    assert all(found[0][name] is found[2][name] for name in found[0])
    assert any(found[0][name] is not found[1][name] for name in found[0])


@pytest.mark.parametrize("name", CUTS)
def test_put_is_the_inverse_of_part_of(name: str) -> None:
    whole = torch.randn(6, 12)
    part = torch.randn_like(part_of(whole, CUTS[name]))
    changed = put(whole.clone(), CUTS[name], part)
    assert torch.equal(part_of(changed, CUTS[name]), part)
    assert int((changed != whole).sum()) == part.numel()
    assert torch.equal(part_of(put(changed, CUTS[name], part, add=True), CUTS[name]), part + part)


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        ([1, 1, 1, 0, 0, 0], slice(0, 3)),
        ([0, 1, 1, 0, 0, 0], slice(1, 3)),
        ([1, 0, 0, 1, 0, 0], Runs(0, 1, 3, 2)),
        ([0, 1, 0, 1, 0, 1], Runs(1, 1, 2, 3)),
        ([1, 1, 0, 1, 0, 0], [0, 1, 3]),
        ([1, 0, 1, 0, 0, 1], [0, 2, 5]),
    ],
)
def test_an_axis_is_cut_in_the_simplest_way(kept: list[int], wanted: Any) -> None:
    flags = torch.tensor(kept)
    axis = Axis(torch.zeros(6, dtype=torch.int64).numpy(), (1 - flags).numpy())
    entry = AxisCuts(axis).entry(torch.ones(1, dtype=torch.int64).numpy())
    assert (entry.tolist() if isinstance(entry, Tensor) else entry) == wanted


def test_the_memory_is_used_again_once_nobody_needs_it() -> None:
    own, gradients, cut = parameter(), Gradients(), CUTS["prefix"]

    def backward() -> Tensor:
        take(own, cut, gradients).sum().backward()  # type: ignore[no-untyped-call]
        assert own.grad is not None
        return own.grad

    first = backward().data_ptr()
    own.grad = None
    assert backward().data_ptr() == first
    own.grad = None
    found = backward()
    assert found.data_ptr() == first
    assert torch.equal(found, by_hand_gradient(cut))
    kept, own.grad = found, None  # somebody holds it
    assert backward().data_ptr() != first
    assert torch.equal(kept, by_hand_gradient(cut))


@pytest.mark.parametrize("name", CUTS)
def test_what_the_last_step_wrote_is_cleared(name: str) -> None:
    own, gradients = parameter(), Gradients()
    for cut in (CUTS[name], CUTS["middle"], CUTS[name], tuple(CUTS[name]), CUTS["prefix"]):
        own.grad = None
        take(own, cut, gradients).sum().backward()  # type: ignore[no-untyped-call]
        assert torch.equal(cast(Tensor, own.grad), by_hand_gradient(cut))


def _in_place(p: nn.Parameter) -> None:
    cast(Tensor, p.grad)[5, 6] = 1.0


def _through_data(p: nn.Parameter) -> None:
    cast(Tensor, p.grad).data.add_(p.data)


def _through_numpy(p: nn.Parameter) -> None:
    cast(Tensor, p.grad).numpy()[:] += 1.0


def _clipped(p: nn.Parameter) -> None:
    nn.utils.clip_grad_norm_([p], 0.1)


@pytest.mark.parametrize("change", [_in_place, _through_data, _through_numpy, _clipped])
def test_whatever_the_user_did_to_a_gradient_is_gone_the_next_time(change: Callable[[nn.Parameter], None]) -> None:
    own, gradients = parameter(), Gradients()
    for cut in (CUTS["prefix"], CUTS["runs"]) * 2:
        own.grad = None
        take(own, cut, gradients).sum().backward()  # type: ignore[no-untyped-call]
        assert torch.equal(cast(Tensor, own.grad), by_hand_gradient(cut))
        change(own)


def by_hand_gradient(cut: tuple[Index, ...], scale: float = 1.0) -> Tensor:
    own = parameter()
    (by_hand(own, cut).sum() * scale).backward()  # type: ignore[no-untyped-call]
    assert own.grad is not None
    return own.grad


def test_several_slices_in_one_pass_share_one_gradient() -> None:
    own, gradients = parameter(), Gradients()
    cuts = [CUTS[name] for name in ("prefix", "vectors", "runs", "prefix")]
    parts = [take(own, cut, gradients).sum() * (i + 1) for i, cut in enumerate(cuts)]
    whole = own.square().sum()  # takes part too
    (torch.stack(parts).sum() + whole).backward()  # type: ignore[no-untyped-call]
    wanted = sum((by_hand_gradient(cut, i + 1.0) for i, cut in enumerate(cuts)), 2 * own.detach())
    torch.testing.assert_close(own.grad, wanted)


def test_gradients_add_up_over_passes() -> None:
    own, gradients = parameter(), Gradients()
    for name in ("prefix", "runs", "prefix"):
        take(own, CUTS[name], gradients).sum().backward()  # type: ignore[no-untyped-call]
    wanted = 2 * by_hand_gradient(CUTS["prefix"]) + by_hand_gradient(CUTS["runs"])
    assert own.grad is not None
    assert torch.equal(own.grad, wanted)


def test_asking_for_a_gradient_leaves_the_parameters_own_alone() -> None:
    own, gradients, cut = parameter(), Gradients(), CUTS["prefix"]
    take(own, cut, gradients).sum().backward()  # type: ignore[no-untyped-call]
    (found,) = torch.autograd.grad(take(own, cut, gradients).square().sum(), own)
    assert own.grad is not None
    assert torch.equal(own.grad, by_hand_gradient(cut))
    assert torch.equal(found, own.grad * 2 * own.detach())


@pytest.mark.parametrize("name", CUTS)
def test_gradients_of_gradients(name: str) -> None:
    own = nn.Parameter(parameter().detach().double())
    (first,) = torch.autograd.grad(take(own, CUTS[name], Gradients()).pow(3).sum(), own, create_graph=True)
    (second,) = torch.autograd.grad((first * first.detach()).sum(), own)
    where = by_hand_gradient(CUTS[name]).double()
    torch.testing.assert_close(second, where * 18 * own.detach().pow(3))


def test_hooks_see_the_full_gradient() -> None:
    own, seen = parameter(), list[Tensor]()
    own.register_hook(lambda grad: seen.append(grad.clone()))  # type: ignore[no-untyped-call]
    own.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))  # type: ignore[no-untyped-call]
    take(own, CUTS["prefix"], Gradients()).sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(grad, by_hand_gradient(CUTS["prefix"])) for grad in seen)
    assert len(seen) == 2


def _bfloat16(p: Tensor) -> Tensor:
    return p.to(torch.bfloat16)


def _channels_last(p: Tensor) -> Tensor:
    return p.reshape(6, 3, 2, 2).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("change", [_bfloat16, _channels_last])
def test_other_types_and_layouts(change: Callable[[Tensor], Tensor]) -> None:
    own, gradients = nn.Parameter(change(parameter().detach())), Gradients()
    cut = (slice(0, 4), slice(0, 2))
    for _ in range(2):
        own.grad = None
        take(own, cut, gradients).sum().backward()  # type: ignore[no-untyped-call]
        found = cast(Tensor, own.grad)
        assert found.dtype == own.dtype
        assert found.stride() == own.stride()
        wanted = torch.zeros_like(own)
        wanted[:4, :2] = 1
        assert torch.equal(found, wanted)


def test_the_memory_of_another_type_is_not_used() -> None:
    own, gradients = parameter(), Gradients()
    for dtype in (torch.float32, torch.float64, torch.float16):
        own.data = own.data.to(dtype)
        own.grad = None
        take(own, CUTS["prefix"], gradients).sum().backward()  # type: ignore[no-untyped-call]
        assert torch.equal(cast(Tensor, own.grad), by_hand_gradient(CUTS["prefix"]).to(dtype))


def test_functional_transforms() -> None:
    net = elastic(nets.mlp((6,), 3, hidden=(16,)), torch.randn(4, 6), verbose=False)
    net.activate(net.space.smallest())
    x = torch.randn(5, 6)
    state = {name: p.detach() for name, p in net.named_parameters()}

    def loss(given: dict[str, Tensor], row: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(net, given, (row[None],))
        return out.square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
    net(x).square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)
    assert torch.func.vmap(lambda row: net(row[None])[0])(x).shape == (5, 3)


def test_a_whole_parameter_is_not_copied_and_holds_no_memory() -> None:
    own, gradients = parameter(), Gradients()
    take(own, CUTS["prefix"], gradients).sum().backward()  # type: ignore[no-untyped-call]
    assert gradients._slots
    assert take(own, (slice(0, 6), slice(None)), gradients) is own
    assert not gradients._slots
    assert torch.equal(cast(Tensor, own.grad), by_hand_gradient(CUTS["prefix"]))


def test_a_copy_shares_no_memory() -> None:
    net = elastic(nets.mlp((6,), 3, hidden=(16,)), torch.randn(4, 6), verbose=False).train()
    net.activate(net.space.smallest())
    net(torch.randn(4, 6)).sum().backward()
    assert net._gradients._slots
    assert not copy.deepcopy(net)._gradients._slots
    net.eval()
    assert not net._gradients._slots


def test_gradients_of_tied_weights_meet_in_one_part() -> None:
    net = elastic(nets.gpt((8,), dim=16, depth=1, heads=2), torch.randint(0, 65, (2, 8)), verbose=False).train()
    net.activate(net.space.uniform(0.5))
    small, x = net.extract(net.active), torch.randint(0, 65, (3, 8), generator=seeded(0, "x"))
    for each in (net, small):
        F.cross_entropy(each(x).flatten(0, 1), x.flatten()).backward()  # type: ignore[no-untyped-call]
    theirs = dict(small.named_parameters())
    assert len(theirs) > 10
    for name, p in net.named_parameters():
        mine, other = p.grad, theirs[name].grad
        assert mine is not None
        assert other is not None
        torch.testing.assert_close(part_of(mine, net._cut(name, net._state[0])), other, rtol=1e-5, atol=1e-6)
        assert int((mine != 0).sum()) <= other.numel()


def test_a_sandwich_step_equals_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 8, 8), torch.randint(0, 5, (8,))
    net = elastic(nets.resnet((3, 8, 8), 5, blocks=(1, 1), width=8), x, verbose=False).train()
    found = []
    for large in (1, 10**9):
        monkeypatch.setattr(sys.modules["pliant.elastic.slicing"], "_LARGE", large)
        twin = copy.deepcopy(net)
        loss = Sandwich().step(twin, (x, y), F.cross_entropy, generator=seeded(1, "sandwich"))
        loss.backward()  # type: ignore[no-untyped-call]
        found.append({name: p.grad for name, p in twin.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_few_sub_networks_stay_prepared() -> None:
    net, generator = elastic(nets.mlp((6,), 3, hidden=(64, 64, 64)), torch.randn(4, 6), verbose=False), seeded(0, "few")
    x = torch.randn(4, 6)
    seen = {config: net.extract(config) for config in (net.sample(generator) for _ in range(40))}
    assert len(seen) > 16
    for _ in range(2):
        for config, small in seen.items():
            net.activate(config)
            assert torch.equal(net(x), small(x))
    assert len(net._prepared) <= 16
