import copy

import pytest
import torch
from torch import Tensor, nn

from pliant.compress import prune
from pliant.data import load
from pliant.learn import Settings, evaluate
from pliant.nets import mlp, resnet


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.fixture
def classifier() -> nn.Module:
    torch.manual_seed(0)
    return mlp((8,), 3, hidden=(16, 12)).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(1))


def test_it_is_really_smaller_and_the_model_is_unchanged(classifier: nn.Module, x: Tensor) -> None:
    before, answer = copy.deepcopy(classifier.state_dict()), classifier(x)
    small = prune(classifier, x, keep=0.5)
    assert parameters(small) == 8 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3
    assert small(x).shape == (5, 3)
    assert set(small.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())
    assert torch.equal(classifier(x), answer)


def test_keeping_everything_changes_nothing(classifier: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(prune(classifier, x, keep=1.0)(x), classifier(x))


def test_units_that_do_nothing_go_first(classifier: nn.Module, x: Tensor) -> None:
    dead = torch.tensor([0, 3, 4, 7, 9, 10, 12, 15])
    first, second = (layer for layer in classifier.modules() if isinstance(layer, nn.Linear) and layer.out_features > 3)
    with torch.no_grad():
        first.weight[dead], first.bias[dead], second.weight[:, dead] = 0.0, 0.0, 0.0
        second.weight[:6], second.bias[:6] = 0.0, 0.0
    torch.testing.assert_close(prune(classifier, x, keep=0.5)(x), classifier(x))


def test_mode_comes_back(classifier: nn.Module, x: Tensor) -> None:
    assert not prune(classifier, x).training
    classifier.train()
    assert prune(classifier, x).training
    assert classifier.training


def test_fine_tuning_wins_back_what_was_lost() -> None:
    data = load("digits")
    torch.manual_seed(0)
    net = resnet(data.shape, 10, blocks=(1, 1), width=8)
    settings = Settings(lr=1e-2, batch_size=64, progress=False)
    cut = prune(net, data.example(), keep=0.5, data=data, epochs=0)
    tuned = prune(net, data.example(), keep=0.5, data=data, epochs=5, settings=settings)
    assert parameters(cut) == parameters(tuned) < 0.5 * parameters(net)
    assert evaluate(tuned, data.val) > evaluate(cut, data.val) + 0.4
    again = prune(net, data.example(), keep=0.5, data=data, epochs=5, settings=settings)
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("keep", "epochs"), [(0.0, 1), (1.5, 1), (-0.5, 1), (0.5, -1)])
def test_shares_and_epochs_out_of_range(classifier: nn.Module, x: Tensor, keep: float, epochs: int) -> None:
    with pytest.raises(ValueError, match=r"must be in|must not be negative"):
        prune(classifier, x, keep=keep, epochs=epochs)
