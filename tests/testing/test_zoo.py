import pytest
import torch

from pliant.core import call, main_output, tensors_of
from pliant.testing.entry import Entry
from pliant.testing.zoo import ZOO

ENTRIES = [
    pytest.param(each, id=name, marks=[pytest.mark.slow] if each.family and "core" not in each.tags else [])
    for name, each in ZOO.items()
]
"""Every network; those of transformers are slow to make."""


LEAD_NOWHERE = {"nbeats": {"past.2"}, "wavenet": {"back.2"}}
"""Layers of the published networks whose result nobody reads: the last block's part that later blocks would take."""


def test_the_plain_networks_are_there() -> None:
    wanted = "mlp resnet dwsep vit gpt lstm mbnet resnext densenet unet bilstm gru encoder shared convnext mixer "
    wanted += "shufflenet tcn"
    assert set(wanted.split()) <= set(ZOO)
    assert all(name == each.name for name, each in ZOO.items())


def test_the_zoo_is_as_large_as_is_said() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    assert len(ZOO) >= 80
    families = {each.family for each in ZOO.values()} - {None}
    assert len(families) >= 45
    assert all(("hf" in each.tags) == (each.family is not None) for each in ZOO.values())
    assert sum(each.groups is not None for each in ZOO.values()) >= 30
    assert 12 <= sum("core" in each.tags for each in ZOO.values()) <= 24


def test_expected_groups_are_written_in_rising_order() -> None:
    for name, each in ZOO.items():
        for kind, units in (each.groups or {}).items():
            assert list(units) == sorted(units), (name, kind)
            assert kind != "depth" or len(units) == 1, name


def test_two_networks_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from pliant.testing import zoo, zoo_plain

    monkeypatch.setattr(zoo, "_PARTS", (zoo_plain, zoo_plain))
    with pytest.raises(ValueError, match="the zoo has two networks called 'mlp'"):
        zoo._joined()


@pytest.mark.parametrize("each", ENTRIES)
def test_make_and_example_are_deterministic_and_leave_the_random_state_alone(each: Entry) -> None:
    state = torch.get_rng_state()
    one, two = each.make(), each.make()
    x, y = each.example(), each.example()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(x), tensors_of(y), strict=True))
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key
        assert value.numel() == 0 or value.data_ptr() != two.state_dict()[key].data_ptr()


@pytest.mark.parametrize("each", ENTRIES)
def test_forward_in_both_modes_is_finite_and_small(each: Entry) -> None:
    net, x = each.make(), each.example()
    assert net.training == each.training
    for mode in (True, False):
        out = main_output(call(net.train(mode), x))
        assert torch.isfinite(out).all()
    assert sum(p.numel() for p in net.parameters()) < (400_000 if each.family else 30_000)


@pytest.mark.parametrize("each", ENTRIES)
def test_no_units_are_alike(each: Entry) -> None:
    net = each.make()
    buffers = {key: value for key, value in net.named_buffers() if value.is_floating_point() and value.numel() > 1}
    assert [key for key, value in buffers.items() if bool((value == value.flatten()[0]).all())] == []
    assert all((value > 0).all() for key, value in buffers.items() if key.endswith("running_var"))
    for key, p in net.named_parameters():
        for axis in (axis for axis, size in enumerate(p.shape) if size > 1):
            assert bool((p != p.narrow(axis, 0, 1)).any()), f"{key} repeats itself along axis {axis}"


@pytest.mark.parametrize("each", [param for param in ENTRIES if not param.marks])
def test_output_depends_on_every_parameter(each: Entry) -> None:
    net, x = each.make(), each.example()
    floats = [tensor for tensor in tensors_of(call(net, x)) if tensor.is_floating_point()]
    out = torch.stack([tensor.square().sum() for tensor in floats]).sum()
    torch.autograd.backward(out)
    unused = {key.rpartition(".")[0] for key, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert unused == LEAD_NOWHERE.get(each.name, set())
