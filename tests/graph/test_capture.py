"""From a module to a program: what is kept, what is noted, what is refused."""

import inspect as python
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import PliantError, call
from pliant.elastic import elastic
from pliant.graph import trace
from pliant.testing import LAWS, Subject
from pliant.testing.subject import case_of
from tests.graph.tiny import Row, Tiny, floats, inspect, linear, weight

X = floats(6)
W = "width"


def _pair(a: int, b: int) -> dict[str, nn.Module]:
    return {"a": linear(6, a), "c": linear(b, 3)}


# -- writing in place ------------------------------------------------------------------------------------------------


def _relu(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    y.mul_(2.0).add_(1.0)
    y += s.b(x)
    return s.c(y)


def _relu_of_view(s: Any, x: Tensor) -> Any:
    y = s.a(x).view(-1, 2, 4)
    y.relu_()
    return s.c(y.flatten(1))


def _view_before(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    seen = y[:, :4]
    y.relu_()
    return s.c(seen) + y.sum(1, keepdim=True)


def _view_before_last(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    z = (y[:, :4] * 2.0).sum(1, keepdim=True)
    y.add_(1.0)
    return z + s.c(y)


def _through_slice(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    y[:, :4] = s.b(x)
    return s.c(y)


def _column(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    y[:, 2] = 1.0
    return s.c(y)


def _masked(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    y[y < 0] = 0.0
    return s.c(y)


def _dropout_self(s: Any, x: Tensor) -> Any:
    y = s.a(x)
    z = F.dropout(y, 0.5, s.training)
    z.relu_()
    return s.c(y) + s.d(z)


IN_PLACE = [
    Row("functional", _relu, X, [(W, 8)], lambda: {**_pair(8, 8), "b": linear(6, 8)}),
    # nobody looks at the memory under another name, so that it is as good as functional
    Row("view-alone", _relu_of_view, X, [(W, 4)], lambda: _pair(8, 8)),
    Row("view-done-with", _view_before_last, X, [(W, 4), (W, 4)], lambda: _pair(8, 8)),
    # somebody does: it stays in place
    Row("view-seen-later", _view_before, X, [(W, 4), (W, 4)], lambda: _pair(8, 4)),
    Row(
        "slice-written",
        _through_slice,
        X,
        [(W, 4), (W, 4)],
        lambda: {**_pair(8, 8), "b": linear(6, 4)},
        silent=dict.fromkeys(("a.weight[0]", "a.bias[0]"), "the first half is written over"),
    ),
    Row("column-written", _column, X, [(W, 2), (W, 5)], lambda: _pair(8, 8)),
    Row("mask-written", _masked, X, [(W, 8)], lambda: _pair(8, 8)),
]


@pytest.mark.parametrize("row", IN_PLACE, ids=[row.name for row in IN_PLACE])
def test_writing_in_place(row: Row) -> None:
    family = inspect(row)
    assert all(r.reason for r in family.graph.rigid)


def test_dropout_that_returns_its_input_is_no_copy() -> None:
    # in evaluation mode dropout gives back its operand, so that relu_ changes that, too; in training mode it does not
    row = Row("dropout", _dropout_self, X, [], lambda: {**_pair(8, 8), "d": linear(8, 3)})
    LAWS["widest_equals_original"](row.subject())
    LAWS["sliced_equals_extracted"](row.subject())


def test_the_example_is_not_written_to() -> None:
    x = X.clone()
    net = elastic(Tiny(lambda s, x: s.a(x.relu_()), {"a": linear(6, 3)}), x)
    assert torch.equal(x, X)
    assert torch.equal(net(X.clone()), net.extract({})(X.clone()))


# -- training and evaluation -----------------------------------------------------------------------------------------


def _branch(s: Any, x: Tensor) -> Any:
    return s.a(x) if s.training else s.b(x)


def _noise(s: Any, x: Tensor) -> Any:
    y = torch.relu(s.a(x))
    return s.c(y + torch.randn_like(y) if s.training else y)


def _constant(s: Any, x: Tensor) -> Any:
    return s.c(s.a(x) * torch.tensor([2.0 if s.training else 3.0]))


def _average(s: Any, x: Tensor) -> Any:
    y = torch.relu(s.a(x))
    if s.training:
        s.mean.mul_(0.9).add_(y.detach().mean(0) * 0.1)
    return s.c(y - s.mean)


BRANCHES = [
    Row("same-operators-other-weights", _branch, X, [], lambda: {"a": linear(6, 3), "b": linear(6, 3)}),
    Row("other-constant", _constant, X, [(W, 8)], lambda: _pair(8, 8)),
]


@pytest.mark.parametrize("row", BRANCHES, ids=[row.name for row in BRANCHES])
def test_modes_that_differ_give_the_evaluation_graph_and_a_note(row: Row) -> None:
    family = inspect(row)
    (note,) = family.graph.notes
    assert note.startswith("training and evaluation run different operators; the evaluation graph is used")
    assert note in str(family.report())
    figures = LAWS["widest_equals_original"](row.subject())
    assert note in figures


ADDED = [
    Row("noise", _noise, X, [(W, 8)], lambda: _pair(8, 8)),
    Row("moving-average", _average, X, [(W, 8)], lambda: {**_pair(8, 8), "mean": torch.zeros(8)}),
]


@pytest.mark.parametrize("row", ADDED, ids=[row.name for row in ADDED])
def test_what_training_adds_is_kept_for_training(row: Row) -> None:
    family = inspect(row)
    assert family.graph.notes == []
    assert any(node.live for node in family.graph.program)


def _count(s: Any, x: Tensor) -> Any:
    s.calls.add_(1)
    return s.c(torch.relu(s.a(x))) + s.calls


def _count_training(s: Any, x: Tensor) -> Any:
    if s.training:
        s.calls.add_(1)
    return s.c(torch.relu(s.a(x))) + s.calls


@pytest.mark.parametrize("forward", [_count, _count_training])
def test_counters_count_when_the_original_does(forward: Callable[[Any, Tensor], Any]) -> None:
    parts: dict[str, Any] = {**_pair(8, 8), "calls": torch.tensor(0.0)}
    row = Row(forward.__name__, forward, X, [(W, 8)], lambda: parts)
    assert inspect(row).graph.notes == []
    net = elastic(Tiny(forward, parts), X)
    for expected in (1, 2):
        net.train()(X)
        assert net.state_dict()["calls"] == expected
    net.eval()(X)
    assert net.state_dict()["calls"] == (3 if forward is _count else 2)


def test_dropout_and_norm_follow_the_live_flag() -> None:
    parts = {"a": linear(6, 8), "n": nn.BatchNorm1d(8), "d": nn.Dropout(0.5), "c": linear(8, 3)}
    net = elastic(Tiny(lambda s, x: s.c(s.d(s.n(s.a(x)))), parts), X)
    assert net.graph.notes == []
    net.eval()
    assert torch.equal(net(X), net(X))
    statistics = net.state_dict()["n.running_mean"].clone()
    net.train()
    assert not torch.equal(net(X), net(X))
    assert not torch.equal(net.state_dict()["n.running_mean"], statistics)
    assert net.state_dict()["n.num_batches_tracked"] == 2
    small = net.extract(net.space.smallest()).eval()
    assert torch.equal(small(X), small(X))


def test_dropout_that_is_always_on_stays_on() -> None:
    net = elastic(Tiny(lambda s, x: s.c(F.dropout(s.a(x), 0.5, True)), _pair(8, 8)), X).eval()
    assert not torch.equal(net(X), net(X))


# -- inputs and outputs ----------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two inputs with names."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor | None = None) -> Tensor:
        out: Tensor = self.c(torch.relu(self.a(left)) + self.b(right))
        return out if scale is None else out * scale


LEFT, RIGHT = floats(6), floats(4)


@pytest.mark.parametrize(
    "example",
    [(LEFT, RIGHT), {"left": LEFT, "right": RIGHT}, {"right": RIGHT, "left": LEFT}, (LEFT, RIGHT, floats(1))],
    ids=["tuple", "dict", "dict-turned", "optional"],
)
def test_tuples_and_dicts_are_inputs(example: Any) -> None:
    model = Two()
    net = elastic(model, example)
    assert [(g.kind, g.units) for g in net.graph.groups] == [(W, 8)]
    assert torch.equal(call(net, example), call(model, example))
    small = net.extract(net.space.smallest())
    with net.using(net.space.smallest()):
        assert torch.equal(call(net, example), call(small, example))
    if len(example) == 2:
        named = {"left": LEFT, "right": RIGHT}
        assert torch.equal(net(**named), net(LEFT, RIGHT))
        assert torch.equal(net(LEFT, right=RIGHT), net(LEFT, RIGHT))
        assert torch.equal(small(**named), small(LEFT, RIGHT))


class Variadic(nn.Module):
    """Takes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Two()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        out: Tensor = self.net(*args, **kwargs)
        return out


def test_variadic_forwards_keep_their_batch_free() -> None:
    net = elastic(Variadic(), (LEFT, RIGHT))
    assert net(torch.randn(7, 6), torch.randn(7, 4)).shape == (7, 3)


def test_an_example_that_does_not_fit_forward_is_told() -> None:
    with pytest.raises(PliantError, match=r"Two: the example does not fit forward .*missing.*right"):
        trace(Two(), LEFT)
    with pytest.raises(TypeError, match=r"inputs are a tensor, a tuple .* or a dict .*, got int"):
        trace(Two(), 3)


@dataclass
class Answer:
    """A dataclass that a network returns."""

    logits: Tensor
    hidden: Tensor


torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")
OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, z: (y, z),
    "list": lambda y, z: [y, z],
    "dict": lambda y, z: {"logits": y, "hidden": z},
    "nested": lambda y, z: {"logits": y, "more": (z, [y])},
    "with-none": lambda y, z: (y, None),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_keep_their_structure(kind: str) -> None:
    def forward(s: Any, x: Tensor) -> Any:
        z = torch.relu(s.a(x))
        return OUTPUTS[kind](s.c(torch.tanh(s.b(z))), z)

    model = Tiny(forward, {"a": linear(6, 8), "b": linear(8, 7), "c": linear(7, 3)})
    net = elastic(model, X)
    # what is given out stays as it is
    assert [g.units for g in net.graph.groups] == ([7, 8] if kind == "with-none" else [7]) or kind == "with-none"
    wanted, got, small = model(X), net(X), net.extract(net.space.largest())(X)
    assert repr(wanted).replace(", grad_fn", "") == repr(got).replace(", grad_fn", "")
    assert repr(got) == repr(small)


def test_dataclasses_come_back_as_named_fields() -> None:
    def forward(s: Any, x: Tensor) -> Answer:
        z = torch.relu(s.a(x))
        return Answer(s.c(z), z.mean(1))

    model = Tiny(forward, _pair(8, 8))
    net = elastic(model, X)
    for out in (net(X), net.extract(net.space.largest())(X)):
        assert torch.equal(out.logits, model(X).logits)
        assert torch.equal(out["hidden"], model(X).hidden)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_batch_is_free(rows: int) -> None:
    model = Tiny(lambda s, x: s.c(s.a(x).view(x.shape[0], 2, -1).flatten(1)), _pair(8, 8))
    for example in (X, X[:1]):  # a batch of one would be burnt in; it is doubled
        net = elastic(model, example)
        x = torch.randn(rows, 6)
        assert torch.allclose(net(x), model(x), atol=1e-6)
        small = net.extract(net.space.smallest())
        with net.using(net.space.smallest()):
            assert torch.equal(net(x), small(x))


# -- what is refused, and what is told -------------------------------------------------------------------------------


def _deciding(s: Any, x: Tensor) -> Any:
    if x.sum() > 0:
        return s.a(x)
    return s.c(x)


def test_a_decision_by_value_names_file_line_and_code() -> None:
    number = python.getsourcelines(_deciding)[1] + 1
    with pytest.raises(PliantError) as caught:
        trace(Tiny(_deciding, {"a": linear(6, 3), "c": linear(6, 3)}), X)
    assert "\n" not in str(caught.value)
    assert str(caught.value) == (
        f"{Path(__file__)}:{number} `if x.sum() > 0:`: this line decides by the values of a tensor, so the network is "
        "not one graph. trace the part without the decision, or write it with torch.where"
    )


def test_a_failing_forward_is_told_without_noise(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(PliantError, match=r"test_capture.py:\d+ `.*`: .*cannot trace"):
        trace(Tiny(lambda s, x: s.a(x), {"a": linear(5, 3)}), X)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def _autocast(s: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = s.a(x)
    return s.c(y.float())


def test_autocast_inside_is_refused_because_it_would_be_lost() -> None:
    with pytest.raises(PliantError, match=r"autocast inside a network would be lost\. put torch\.autocast around"):
        trace(Tiny(_autocast, _pair(8, 8)), X)


@torch.library.custom_op("pliant_tests::halves", mutates_args=())
def _halves(x: Tensor) -> Tensor:
    """Adds the two halves crosswise: what no rule can know."""
    half = x.shape[1] // 2
    return torch.cat([x[:, half:] + x[:, :half], x[:, :half]], 1)


_halves.register_autograd(lambda ctx, grad: torch.cat([grad[:, : grad.shape[1] // 2] + grad[:, grad.shape[1] // 2 :],
                                                       grad[:, : grad.shape[1] // 2]], 1))  # fmt: skip


@_halves.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unknown(nn.Module):
    """Two ways from one stream, one of them through an unknown operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(8, 7)
        self.outs = nn.ModuleList([nn.Linear(7, 3), nn.Linear(12, 3)])

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        z = torch.ops.pliant_tests.halves(self.b(y))
        out: Tensor = self.outs[0](torch.relu(self.c(y))) + self.outs[1](z)
        return out


def test_an_unknown_operator_fixes_what_it_touches_and_is_reported() -> None:
    subject = Subject("unknown", lambda: _seeded(Unknown), lambda: X)
    for law in ("widest_equals_original", "permutation", "leave_one_axis_out"):
        LAWS[law](subject)
    family = case_of(subject).family
    assert sorted((g.name, g.units) for g in family.graph.groups) == [("width:a", 8), ("width:c", 7)]
    number = python.getsourcelines(Unknown.forward)[1] + 2
    (rigid,) = (rigid for rigid in family.graph.rigid if rigid.operator == "pliant_tests.halves.default")
    assert rigid.line == f"test_capture.py:{number}: z = torch.ops.pliant_tests.halves(self.b(y))"
    assert rigid.reason == "no rule for this operator"
    assert rigid.line in str(family.report())


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def test_tensors_written_out_in_the_code_are_constants() -> None:
    model = Tiny(lambda s, x: s.c(s.a(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])), _pair(5, 5))
    net = elastic(model, X)
    assert torch.equal(net(X), model(X))
    assert [g.units for g in net.graph.groups] == [5]  # the constant bends with the units it belongs to
    small = net.extract(net.space.smallest())
    with net.using(net.space.smallest()):
        assert torch.equal(net(X), small(X))


def test_the_model_is_not_changed_and_not_kept() -> None:
    model = Tiny(lambda s, x: s.c(torch.relu(s.a(x))), _pair(8, 8)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    net = elastic(model, X)
    assert not model.training
    assert not net.training
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_frozen_parameters_stay_frozen() -> None:
    model = Tiny(lambda s, x: s.c(torch.relu(s.a(x))), _pair(8, 8))
    dict(model.named_parameters())["a.weight"].requires_grad_(False)
    net = elastic(model, X)
    small = net.extract(net.space.smallest())
    for each in (net, small):
        assert [name for name, p in each.named_parameters() if not p.requires_grad] == ["a.weight"]


def test_parameters_that_are_given_straight_out_stay() -> None:
    net = elastic(Tiny(lambda s, x: (s.a(x), s.w), {"a": linear(6, 8), "w": weight(8)}), X)
    assert net.graph.groups == []
    assert net.space.size == 1
    assert "nothing bends" in str(net.report())
