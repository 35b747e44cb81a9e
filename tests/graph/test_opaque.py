"""Sub-modules and methods that export cannot follow: they run as they are, and the rest bends."""

import copy
import inspect as python
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.core import PliantError
from pliant.diagram.text import graph_hash, to_text
from pliant.elastic import elastic
from pliant.export import to_onnx
from pliant.graph import trace
from pliant.testing import LAWS, Subject

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
TOLD = ("input_unchanged", "widest_equals_original", "sliced_equals_extracted", "permutation", "leave_one_axis_out",
        "slices_only", "cost_falls", "deterministic", "bad_input")  # fmt: skip


class Decides(nn.Module):
    """Takes one of two ways, by the values."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.left(x)  # type: ignore[no-any-return]
        return self.right(x)  # type: ignore[no-any-return]


class Counts(nn.Module):
    """Goes through numpy, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        place = int(x.detach().numpy().argmax()) % 3 + 1
        return {"y": x * self.weight * place * scale, "more": [x.sum(-1)]}


class Loops(nn.Module):
    """Python loops over values."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for row in range(x.shape[0]):
            for place in (x[row] > 0).nonzero().squeeze(-1).tolist():
                out[row, place] = x[row, place]
        return out


class Around(nn.Module):
    """Something that cannot be followed, in the middle of what can."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 8)
        self.middle = middle
        self.third, self.last = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.second(torch.relu(self.first(x))))
        if isinstance(y, dict):
            y = y["y"] + y["more"][0][:, None]
        out: Tensor = self.last(torch.relu(self.third(y)))
        return out


def _made(middle: Callable[[], nn.Module]) -> Around:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Around(middle())


@pytest.mark.parametrize("middle", [Decides, Counts, Loops])
def test_the_laws_hold_around_what_cannot_be_followed(middle: Callable[[], nn.Module]) -> None:
    subject = Subject(middle.__name__, lambda: _made(middle), lambda: X)
    for law in TOLD:
        LAWS[law](subject)


@pytest.mark.parametrize("middle", [Decides, Counts, Loops])
def test_it_is_rigid_and_named_and_the_rest_bends(middle: Callable[[], nn.Module]) -> None:
    net = elastic(_made(middle), X)
    assert [(g.name, g.units) for g in net.graph.groups] == [("width:first", 16), ("width:third", 12)]
    (rigid,) = net.graph.rigid
    assert (rigid.operator, rigid.module) == (middle.__name__, "middle")
    assert Path(__file__).name in rigid.line
    assert rigid.reason.startswith("runs as it is, because it cannot be traced: ")
    assert rigid.line in str(net.report())


def test_both_ways_of_a_decision_are_taken() -> None:
    model = _made(Decides)
    with torch.no_grad():
        model.second.bias.zero_()
        model.first.bias.zero_()
        model.second.weight.sub_(model.second.weight.mean())
    net = elastic(model, X)
    ways = set()
    for rows in (1, 2, 3, 4, 9):
        for sign in (1.0, -1.0):
            x = sign * torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
            assert torch.equal(net(x), model(x))
            ways.add(bool(model.second(torch.relu(model.first(x))).sum() > 0))
            small = net.extract(net.space.smallest())
            with net.using(net.space.smallest()):
                assert torch.equal(net(x), small(x))
    assert ways == {True, False}


def test_its_parameters_train_and_are_stored_under_their_names() -> None:
    model = _made(Decides)
    net = elastic(model, X)
    assert set(net.state_dict()) == set(model.state_dict())
    net.train()(X).sum().backward()
    used = [name for name, p in net.named_parameters() if "middle" in name and p.grad is not None]
    assert used in (["middle.left.weight", "middle.left.bias"], ["middle.right.weight", "middle.right.bias"])
    small = net.extract(net.space.smallest())
    assert {"middle.left.weight", "middle.right.bias"} <= set(small.state_dict())
    with torch.no_grad():
        small.get_parameter("middle.left.weight").zero_()
    assert net.get_parameter("middle.left.weight").any()
    other = elastic(_made(Decides), X)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(X), model(X))


def test_a_copy_is_its_own() -> None:
    net = elastic(_made(Counts), X)
    twin = copy.deepcopy(net)
    before = net(X)
    with torch.no_grad():
        twin.get_parameter("middle.weight").zero_()
    assert torch.equal(net(X), before)
    assert not torch.equal(twin(X), before)


class Modes(nn.Module):
    """Decides, and drops and counts in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(x))
        return x if float(x.detach().sum()) > 0 else -x


def test_it_follows_the_mode() -> None:
    net = elastic(_made(Modes), X)
    net.eval()
    assert torch.equal(net(X), net(X))
    assert int(net.state_dict()["middle.norm.num_batches_tracked"]) == 0
    net.train()
    assert not torch.equal(net(X), net(X))
    assert int(net.state_dict()["middle.norm.num_batches_tracked"]) == 2


def test_a_weight_that_the_rest_uses_too_stays_whole() -> None:
    model = _made(Decides)
    model.third = nn.Linear(8, 8)
    model.last = nn.Linear(8, 3)
    model.third.weight = model.middle.get_parameter("left.weight")
    net = elastic(model, X)
    assert [g.name for g in net.graph.groups] == ["width:first"]
    small = net.extract(net.space.smallest())
    assert small.get_parameter("third.weight") is small.get_parameter("middle.left.weight")


def test_it_cannot_be_saved_or_exported_to_onnx() -> None:
    net = elastic(_made(Decides), X)
    with pytest.raises(PliantError, match=r"test_opaque.py:\d+ `if x.sum\(\) > 0:`: middle runs as it is .* extract"):
        net.save("nowhere")
    with pytest.raises(PliantError, match="middle runs as it is, because it cannot be traced, and has no ONNX form"):
        to_onnx(net.extract(net.space.smallest()), X)


def test_text_and_hash_name_it_by_class_and_shape() -> None:
    one, two, other = (trace(_made(kind), X) for kind in (Decides, Decides, Loops))
    assert "= module.Decides(%" in to_text(one)
    assert "middle" not in to_text(one)
    assert graph_hash(one) == graph_hash(two) != graph_hash(other)


# -- methods -----------------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """Post-processing in a method of its own, which needs no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scores, self.boxes = nn.Linear(6, 16), nn.Linear(16, 5), nn.Linear(16, 4)
        self.threshold = 0.0

    def pick(self, scores: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for score, box in zip(scores, boxes, strict=True):
            keep = (score > self.threshold).nonzero().squeeze(-1)
            found.append({"labels": keep, "scores": score[keep], "box": box if len(keep) else -box})
        return found

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = torch.relu(self.first(x))
        picked = self.pick(self.scores(y), self.boxes(y))
        return {"scores": [one["scores"] * 2 for one in picked], "boxes": torch.stack([one["box"] for one in picked])}


def test_a_method_that_cannot_be_followed_leaves_its_module_to_bend() -> None:
    model = Detector()
    net = elastic(model, X)
    assert [(g.name, g.units) for g in net.graph.groups] == [("width:first", 16)]
    (rigid,) = net.graph.rigid
    assert rigid.operator == "Detector.pick"
    assert net.graph.coverage() > 0.95
    for seed in range(4):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        got, wanted, small = net(x), model(x), net.extract(net.space.smallest())
        assert all(torch.equal(a, b) for a, b in zip(got["scores"], wanted["scores"], strict=True))
        assert torch.equal(got["boxes"], wanted["boxes"])
        with net.using(net.space.smallest()):
            assert torch.equal(net(x)["boxes"], small(x)["boxes"])


class Owns(Detector):
    """As above, with a weight in the method."""

    def pick(self, scores: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        return super().pick(scores * self.scores.bias, boxes)


class Remembers(Detector):
    """As above, with something that the forward left behind."""

    def pick(self, scores: Tensor, boxes: Tensor) -> list[dict[str, Tensor]]:
        found = []
        for score, box in zip(scores, boxes, strict=True):
            keep = (score > self.level).nonzero().squeeze(-1)
            found.append({"labels": keep, "scores": score[keep], "box": box if len(keep) else -box})
        return found

    def forward(self, x: Tensor) -> dict[str, Any]:
        self.level = x.shape[1] / 100
        return super().forward(x)


@pytest.mark.parametrize("kind", [Owns, Remembers])
def test_a_method_that_is_no_function_of_its_arguments_is_not_cut_out(kind: type[Detector]) -> None:
    with pytest.raises(PliantError, match=r"test_opaque.py:\d+ `.*keep.*`: this line decides by the values"):
        elastic(kind(), X)
    inside = Around(nn.Identity())
    inside.middle = nn.Sequential(nn.Linear(8, 6), kind())
    with pytest.raises(PliantError, match=r"decides by the values|cannot be followed|cannot trace"):
        elastic(inside, X)


# -- what is refused ---------------------------------------------------------------------------------------------------


class Top(nn.Module):
    """Decides in the forward of the network itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y if y.sum() > 0 else -y


def test_a_decision_of_the_network_itself_is_refused_with_its_line() -> None:
    number = python.getsourcelines(Top.forward)[1] + 2
    with pytest.raises(PliantError, match=f"{Path(__file__).name}:{number} `return y if .*this line decides by"):
        trace(Top(), X)


class Fickle(nn.Module):
    """Returns another structure for other values."""

    def forward(self, x: Tensor) -> Any:
        return [x] * (1 + int(x.detach().abs().sum() > 1e3))


class Uses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), Fickle(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(sum(self.b(self.a(x))))
        return out


def test_another_structure_than_was_traced_is_refused_when_it_comes() -> None:
    net = elastic(Uses(), X)
    assert net(X).shape == (4, 3)
    with pytest.raises(PliantError, match="Fickle: a sub-module that runs as it is returned another structure"):
        net(X * 1e6)


def test_a_sub_module_that_does_not_run_at_all_is_no_reason_to_hide_it() -> None:
    model = _made(Decides)
    model.middle = nn.Linear(9, 8)
    with pytest.raises(PliantError, match=r"test_opaque.py:\d+ `y = self.middle.*cannot trace this network"):
        trace(model, X)
