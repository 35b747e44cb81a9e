"""The metric on disturbed inputs, against what can be worked out by hand for a linear network."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core import Config, seeded
from pliant.data import Dataset, Split
from pliant.search import Robustness, Rungs, SearchSettings, search
from pliant.search.context import Candidate, Context
from pliant.search.front import Axis
from pliant.search.objectives import gauge

CONFIG = Config({"width:first": 8, "depth:x": True})
SIZE = 0.5


class Sides(nn.Module):
    """Two classes: which side of a plane a row lies on."""

    def __init__(self, normal: Tensor) -> None:
        super().__init__()
        self.plane = nn.Linear(len(normal), 2, bias=False)
        with torch.no_grad():
            self.plane.weight.copy_(torch.stack([-normal, normal]))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.plane(x)
        return result


@pytest.fixture
def plane() -> tuple[Any, Split, Tensor]:
    """A candidate that is right everywhere, the rows, and how far each is from being wrong."""
    generator = seeded(5, "plane")
    normal, rows = torch.randn(4, generator=generator), torch.randn(400, 4, generator=generator)
    scores = rows @ normal
    split = Split(rows, (scores > 0).long())
    # the largest change of every number that a row withstands
    return Sides(normal).eval(), split, scores.abs() / normal.abs().sum() / rows.std()


def read(model: Robustness, module: nn.Module, split: Split, net: Any, **more: Any) -> float:
    context = Context(net, split, split, "accuracy", batch_size=64, **more)
    candidate = Candidate(context, CONFIG)
    candidate.__dict__["module"] = module
    return model.gauge(context).read(candidate).value


@pytest.mark.parametrize("by", ["fgsm", "pgd"])
def test_an_attack_on_a_linear_network_is_the_worst_there_is(
    by: str, plane: tuple[Any, Split, Tensor], net: Any
) -> None:
    module, split, margins = plane
    expected = float((margins > SIZE).float().mean())
    assert 0.2 < expected < 0.8
    assert read(Robustness(by, SIZE, steps=3), module, split, net) == pytest.approx(expected)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not split.inputs.requires_grad


def test_several_steps_find_what_one_step_passes(net: Any) -> None:
    class Dip(nn.Module):
        """Wrong only from 0.3 to 0.7: one step of 1 jumps over it."""

        def forward(self, x: Tensor) -> Tensor:
            score = 0.2 - (x[:, 0] - 0.5).abs()
            return torch.stack([-score, score], dim=1)

    rows = torch.tensor([[0.0], [2.0]])  # the second is right whatever happens to it
    split = Split(rows, torch.zeros(2, dtype=torch.int64))
    size = float(1 / rows.std())
    assert read(Robustness("fgsm", size), Dip().eval(), split, net) == 1
    assert read(Robustness("pgd", size, steps=5), Dip().eval(), split, net) == 0.5


def test_noise_is_weaker_than_an_attack_and_the_same_for_all(plane: tuple[Any, Split, Tensor], net: Any) -> None:
    module, split, _ = plane
    noisy = read(Robustness("noise", SIZE), module, split, net)
    assert read(Robustness("fgsm", SIZE), module, split, net) < noisy < 1
    assert read(Robustness("noise", SIZE), module, split, net) == noisy
    assert read(Robustness("noise", SIZE), module, split, net, seed=1) != noisy
    assert read(Robustness("noise", 1e-6), module, split, net) == 1


def test_inputs_by_name_and_values_to_predict(net: Any) -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a[:, 0] + 2 * b[:, 0]

    rows = {"a": torch.tensor([[0.0], [2.0]]), "b": torch.tensor([[4.0], [0.0]])}
    split = Split(rows, rows["a"][:, 0] + 2 * rows["b"][:, 0] + 0.01)
    context = Context(net, split, split, "mse", batch_size=2)
    candidate = Candidate(context, CONFIG)
    candidate.__dict__["module"] = Sum().eval()
    found = Robustness("fgsm", 0.1).gauge(context)
    assert found.axis == Axis("robust_mse", False, "", "robustness")
    # each number moves by a tenth of the deviation of its tensor, away from the value
    worst = 0.01 + 0.1 * (2**0.5 + 2 * 8**0.5)
    assert found.read(candidate).value == pytest.approx(worst**2, rel=1e-4)


def test_it_has_a_name_and_is_kept_by_what_it_depends_on(data: Dataset, net: Any) -> None:
    context = Context(net, data.train, data.val, data.metric)
    named = gauge("robustness", context)
    assert named.axis == Axis("robust_accuracy", True, "", "robustness")
    others = [Robustness("pgd"), Robustness(size=0.1), Robustness("fgsm", steps=2)]
    depends = [named.depends(), *(gauge(other, context).depends() for other in others)]
    assert all(one != other for i, one in enumerate(depends) for other in depends[:i])
    assert named.depends() != gauge("accuracy", context).depends()


def test_it_is_searched_for_with_cheap_looks_first(data: Dataset, net: Any) -> None:
    settings = SearchSettings(batch_size=8, calibration_batches=2, rungs=Rungs((1,)))
    front = search(net, data, objectives=(Robustness("fgsm", 0.1), "flops"), n_trials=6, settings=settings)
    assert front
    assert all(0 <= point.values["robust_accuracy"] <= 1 for point in front)


def test_what_cannot_be_disturbed_is_refused(data: Dataset, net: Any) -> None:
    context = Context(net, data.train, data.val, data.metric)
    tokens = Split(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="disturbs real numbers, the inputs hold int64; give an Objective"):
        gauge("robustness", replace(context, val=tokens))
    with pytest.raises(ValueError, match="objective 'robustness' needs data"):
        gauge("robustness", replace(context, val=None))
    for wrong, told in (({"by": "luck"}, "by must be one of"), ({"size": 0.0}, "size must"), ({"steps": 0}, "steps")):
        with pytest.raises(ValueError, match=told):
            Robustness(**wrong)
