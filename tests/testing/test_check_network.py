"""The law suite on a network of one's own."""

import pytest
import torch
from torch import Tensor, nn

from pliant.testing import LAWS, check_network

X = torch.randn(3, 6)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)
        nn.init.zeros_(self.a.bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.b(torch.relu(self.a(x)))}


class Deciding(Own):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.sum() > 0:
            return {"scores": self.b(self.a(x))}
        return {"scores": self.b(torch.relu(self.a(x)))}


def test_the_verdict_names_every_law_and_what_bends() -> None:
    model = Own()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    judgement = check_network(model, X)
    text = str(judgement)
    assert judgement.holds
    assert [verdict.law for verdict in judgement.verdicts] == list(LAWS)
    assert text.splitlines()[0].startswith(f"Own: {len(LAWS)} of {len(LAWS)} laws hold; 1 widths")
    assert "train, search and compile it" in text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_zero_biases_are_seen() -> None:
    judgement = check_network(Own(), X, laws=["leave_one_axis_out"])
    assert "3 axes react" in judgement.verdicts[0].figures


def test_a_network_that_cannot_be_traced_is_told_its_line() -> None:
    judgement = check_network(Deciding(), X, laws=["permutation"])
    assert not judgement.holds
    assert "cannot be made elastic" in str(judgement)
    assert "if x.sum() > 0" in str(judgement)
    assert "or give an example of one row, if every row decides for itself" in str(judgement)


def test_a_network_whose_rows_decide_is_told_what_to_compare_with() -> None:
    judgement = check_network(Deciding(), X[:1], laws=["permutation"])
    assert not judgement.holds
    assert "decides by the values of a tensor" in str(judgement)
    assert "branching.difference" in str(judgement)


def test_nothing_bends_is_said() -> None:
    assert "Nothing bends" in str(check_network(nn.Linear(6, 2), X, laws=["permutation"]))


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        check_network(lambda x: x, X)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no law 'nonsense'"):
        check_network(Own(), X, laws=["nonsense"])
