import pytest
import torch

from pliant.core import call, main_output, tensors_of
from pliant.testing.zoo import ZOO

NAMES = list(ZOO)


def test_the_plain_networks_are_there() -> None:
    wanted = "mlp resnet dwsep vit gpt lstm mbnet resnext densenet unet bilstm gru encoder shared convnext mixer "
    wanted += "shufflenet tcn"
    assert set(wanted.split()) <= set(NAMES)
    assert all(name == entry.name for name, entry in ZOO.items())


def test_hf_networks_come_with_transformers() -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    assert [name for name in NAMES if "hf" in ZOO[name].tags] == ["gpt2", "llama", "bert"]


@pytest.mark.parametrize("name", NAMES)
def test_make_and_example_are_deterministic_and_leave_the_random_state_alone(name: str) -> None:
    state = torch.get_rng_state()
    one, two = ZOO[name].make(), ZOO[name].make()
    x, y = ZOO[name].example(), ZOO[name].example()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(x), tensors_of(y), strict=True))
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key
        assert value.data_ptr() != two.state_dict()[key].data_ptr()


@pytest.mark.parametrize("name", NAMES)
def test_forward_in_both_modes_is_finite_and_small(name: str) -> None:
    net, x = ZOO[name].make(), ZOO[name].example()
    assert net.training
    assert {len(tensor) for tensor in tensors_of(x)} == {2}
    for mode in (True, False):
        out = main_output(call(net.train(mode), x))
        assert len(out) == 2
        assert torch.isfinite(out).all()
    assert sum(p.numel() for p in net.parameters()) < 15_000


@pytest.mark.parametrize("name", NAMES)
def test_no_vector_is_constant(name: str) -> None:
    net = ZOO[name].make()
    constant = [
        key
        for key, value in [*net.named_parameters(), *net.named_buffers()]
        if value.is_floating_point() and value.numel() > 1 and bool((value == value.flatten()[0]).all())
    ]
    assert constant == []
    assert all((value > 0).all() for key, value in net.named_buffers() if key.endswith("running_var"))


@pytest.mark.parametrize("name", NAMES)
def test_output_depends_on_every_parameter(name: str) -> None:
    net, x = ZOO[name].make(), ZOO[name].example()
    floats = [tensor for tensor in tensors_of(call(net, x)) if tensor.is_floating_point()]
    out = torch.stack([tensor.square().sum() for tensor in floats]).sum()
    torch.autograd.backward(out)
    unused = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
