"""What can be skipped, and that skipping is leaving the branch out."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant import nets
from pliant.core import call, main_output
from pliant.elastic import elastic
from pliant.testing import LAWS, Subject, zoo_subjects
from pliant.testing.subject import case_of, gap
from pliant.testing.zoo import ZOO
from tests.graph.tiny import Row, Tiny, floats, inspect, linear, weight

ZOO_SUBJECTS = zoo_subjects()
X = floats(6)
W = "width"


def _block(s: Any, x: Tensor) -> Any:
    return s.c(x + s.b(torch.relu(s.a(x))))


def _nested(s: Any, x: Tensor) -> Any:
    inner = s.a(x)
    return s.c(x + s.b(torch.relu(inner + s.d(torch.relu(s.e(inner))))))


def _post_norm(s: Any, x: Tensor) -> Any:
    return s.c(s.n(s.b(torch.relu(s.a(x))) + x))


def _shared(s: Any, x: Tensor) -> Any:
    for _ in range(2):
        x = x + s.b(torch.relu(s.a(x)))
    return s.c(x)


def _scaled(s: Any, x: Tensor) -> Any:
    y = torch.add(x, s.a(x), alpha=2.0)
    return s.c(torch.add(s.b(y), y, alpha=2.0))


def _used_twice(s: Any, x: Tensor) -> Any:
    branch = s.a(x)
    return s.c(x + branch) + s.d(branch)


def _chained(s: Any, x: Tensor) -> Any:
    return s.c(x + s.a(x) + s.b(x))


def _parallel(s: Any, x: Tensor) -> Any:
    return s.c(s.a(x) + s.b(x) + x)


def _three(s: Any, x: Tensor) -> Any:
    return s.d(x + F.dropout(s.a(x) + (s.b(x) + s.c(x)), 0.0, s.training))


def _minus(s: Any, x: Tensor) -> Any:
    x = x - s.a(x)
    return s.c(torch.rsub(s.b(x), x))


def _negated(s: Any, x: Tensor) -> Any:
    return s.c(s.a(x) - x)


def _fused(s: Any, x: Tensor) -> Any:
    x = torch.addcmul(x, s.g, s.a(x))
    return s.c(torch.lerp(x, s.b(x), 0.3))


def _highway(s: Any, x: Tensor) -> Any:
    gate = torch.sigmoid(s.g(x))
    x = (1 - gate) * x + gate * s.a(x)
    gate = torch.sigmoid(s.h(x))
    return s.c(s.b(x) * (1 - gate) + x * gate)


def _mixture(s: Any, x: Tensor) -> Any:
    gate = torch.sigmoid(s.a(x))
    return s.c((1 - gate) * s.b(x) + gate * s.d(x))


def _in_place(s: Any, x: Tensor) -> Any:
    y = s.b(torch.relu(s.a(x)))
    y += x
    z = s.d(y)
    z += y
    return s.c(z)


def _dropped(s: Any, x: Tensor) -> Any:
    branch = s.g * s.b(torch.relu(s.a(x)))
    if s.training:
        branch = branch * torch.empty(len(x), 1).bernoulli_(0.9) / 0.9
    return s.c(x + branch)


def _two_streams(s: Any, x: Tensor) -> Any:
    return s.c((x + s.a(x)) + (x + s.b(x)))


def _broadcast(s: Any, x: Tensor) -> Any:
    return s.c(x + s.a(x))


def _writes(s: Any, x: Tensor) -> Any:
    y = s.c(x)
    view = y.view(-1, 6)
    branch = s.a(view.mul_(2.0))
    return s.d(y + branch)


def _same(*names: str) -> Callable[[], dict[str, Any]]:
    return lambda: {name: linear(6, 6) for name in names}


def _both(a: int, *more: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"a": linear(6, a), "b": linear(a, 6), "c": linear(6, 3), **{name: nn.LayerNorm(6) for name in more}}


ROWS = [
    # a branch is called by the module that holds it, or else by its first weight
    Row("residual", _block, X, [(W, 8)], _both(8), spans=("a",)),
    # the inner stream is a width; its own branch can go alone, or with all of the outer branch
    Row("nested", _nested, X, [(W, 8), (W, 7)],
        lambda: {"a": linear(6, 8), "b": linear(8, 6), "d": linear(7, 8), "e": linear(8, 7), "c": linear(6, 3)},
        spans=("d", "a")),
    Row("post-norm", _post_norm, X, [(W, 8)], _both(8, "n"), spans=("a",)),
    # each use goes by itself, the weights with the last one
    Row("shared", _shared, X, [(W, 8)], _both(8), spans=("a", "a#2")),
    # x + 2 f(x) without f is x; f(y) + 2 y without f would be 2 y
    Row("scaled", _scaled, X, [], _same("a", "b", "c"), spans=("a",)),
    # the branch is needed elsewhere
    Row("used-twice", _used_twice, X, [], _same("a", "c", "d")),
    # the shortcut of the second one is x and the first one
    Row("chained", _chained, X, [], _same("a", "b", "c"), spans=("a", "b")),
    # each branch of a sum goes by itself, the sum with the last one
    Row("parallel", _parallel, X, [], _same("a", "b", "c"), spans=("b", "a")),
    Row("three", _three, X, [], _same("a", "b", "c", "d"), spans=("c", "b", "a")),
    # x - f(x), and with the operands the other way round; f(x) - x without f would be -x
    Row("minus", _minus, X, [], _same("a", "b", "c"), spans=("a", "b")),
    Row("negated", _negated, X, [], _same("a", "c")),
    # x + g f(x) and x + t (f(x) - x) in one call
    Row("fused", _fused, X, [], lambda: {**_same("a", "b", "c")(), "g": weight(6)}, spans=("a", "b")),
    # (1 - t) x + t f(x) with its gate shut; both sides made of x but neither of the other are no shortcut
    Row("highway", _highway, X, [], _same("a", "b", "c", "g", "h"), spans=("a", "b")),
    Row("mixture", _mixture, X, [(W, 6)], _same("a", "b", "c", "d")),
    Row("in-place", _in_place, X, [(W, 6)], _same("a", "b", "c", "d"), spans=("a", "d")),
    # what both operands add to
    Row("two streams", _two_streams, X, [], _same("a", "b", "c"), spans=("a", "b")),
    # y + f(x) with a branch of another shape is no shortcut
    Row("broadcast", _broadcast, X, [], lambda: {"a": linear(6, 1), "c": linear(6, 3)}),
    # what writes into memory that is seen elsewhere runs without the branch, too
    Row("writes", _writes, X, [], _same("a", "c", "d"), ("mul_",), spans=("a",)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_spans(row: Row) -> None:
    inspect(row)
    LAWS["depth_skips"](row.subject())


BRANCHES = {
    "vit": "blocks.{}.{}",
    "gpt": "blocks.{}.{}",
    "gpt2": "transformer.h.{}.{}",
}


@pytest.mark.parametrize("name", [name for name in BRANCHES if name in ZOO])
@pytest.mark.parametrize("part", ["attn", "mlp"])
@pytest.mark.parametrize("block", [0, 1])
def test_skipping_a_block_is_the_original_with_its_branch_silenced(name: str, part: str, block: int) -> None:
    path = BRANCHES[name].format(block, part)
    case = case_of(ZOO_SUBJECTS[name])
    model, net, example = ZOO[name].make().eval(), copy.deepcopy(case.family).eval(), case.example

    def hook(_module: nn.Module, _args: Any, out: Any) -> Any:
        return tuple(torch.zeros_like(t) if isinstance(t, Tensor) else t for t in out) if isinstance(out, tuple) else (
            torch.zeros_like(out))  # fmt: skip

    model.get_submodule(path).register_forward_hook(hook)
    wanted = main_output(call(model, example))
    config = {f"depth:{path}": False}
    with net.using(config):
        assert torch.equal(main_output(call(net, example)), wanted)
    small = net.extract(config).eval()
    assert torch.equal(main_output(call(small, example)), wanted)
    assert not [key for key in small.state_dict() if key.startswith(path + ".")]


def test_a_skipped_residual_block_of_a_resnet_leaves_its_shortcut() -> None:
    model = nets.resnet((3, 8, 8), 5, blocks=(2,), width=8).eval()
    x = torch.randn(2, 3, 8, 8)
    net = elastic(model, x)
    assert net.graph.span_names == ["depth:stages.0.0", "depth:stages.0.1"]
    with torch.no_grad():
        model.stages[0][0].bn2.weight.zero_()  # type: ignore[index]
        model.stages[0][0].bn2.bias.zero_()  # type: ignore[index]
        with net.using({"depth:stages.0.0": False}):
            assert torch.equal(net(x), model(x))


def test_statistics_of_a_skipped_branch_do_not_move() -> None:
    parts = {"a": linear(6, 6), "n": nn.BatchNorm1d(6), "c": linear(6, 3)}
    net = elastic(Tiny(lambda s, x: s.c(x + s.n(s.a(x))), parts), X).train()
    (span,) = net.graph.span_names
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with net.using({span: False}):
        net(X)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    net(X)
    assert net.state_dict()["n.num_batches_tracked"] == 1
    assert not torch.equal(net.state_dict()["n.running_mean"], before["n.running_mean"])


def test_two_branches_of_one_gated_sum() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        return s.c(x + s.g * s.a(x))

    subject = Subject("gated", lambda: Tiny(forward, {"a": linear(6, 6), "g": weight(6), "c": linear(6, 3)}), lambda: X)
    figures = LAWS["depth_skips"](subject)
    assert figures.endswith("over 1 spans")


def _tiny(f: Callable[[Any, Tensor], Any], *names: str) -> Tiny:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Tiny(f, _same(*names)()).eval()


@pytest.mark.parametrize(("f", "names"), [(_parallel, "ab"), (_three, "abc")], ids=["two", "three"])
def test_every_choice_of_parallel_branches(f: Callable[[Any, Tensor], Any], names: str) -> None:
    last = "c" if f is _parallel else "d"
    model = _tiny(f, *names, last)
    net = elastic(model, X).eval()
    assert sorted(net.graph.span_names) == [f"depth:{name}" for name in names]
    assert len(net.graph.spans) == 2 * len(names) - 1
    for keep in itertools.product([False, True], repeat=len(names)):
        silent = copy.deepcopy(model)
        for name, kept in zip(names, keep, strict=True):
            if not kept:
                for parameter in silent.get_submodule(name).parameters():
                    parameter.data.zero_()
        config = {f"depth:{name}": kept for name, kept in zip(names, keep, strict=True)}
        small = net.extract(config)
        with torch.no_grad(), net.using(config):
            assert gap(net(X), silent(X)) < 1e-6
            assert torch.equal(small(X), net(X))
        assert {key[0] for key in small.state_dict()} == {last, *(n for n, k in zip(names, keep, strict=True) if k)}
        assert net.cost(config).parameters == sum(p.numel() for p in small.parameters())


def test_shared_weights_go_with_their_last_use() -> None:
    net = elastic(_tiny(_shared, "a", "b", "c"), X).eval()
    first, second = net.graph.span_names
    assert "a.weight" in net.extract({first: False}).state_dict()
    small = net.extract({first: False, second: False})
    assert set(small.state_dict()) == {"c.weight", "c.bias"}
    with torch.no_grad(), net.using({first: False, second: False}):
        assert torch.equal(net(X), small(X))


def test_a_branch_that_training_drops_at_random() -> None:
    parts = {**_same("a", "b", "c")(), "g": weight(6)}
    assert elastic(Tiny(_dropped, parts), X).graph.span_names == ["depth:a"]


def test_guards_tell_when_something_is_needed_by_one_of_several() -> None:
    def forward(s: Any, x: Tensor) -> Any:
        mask = torch.sigmoid(s.m)
        x = x + s.a(x) * mask
        return s.c(x + s.b(x) * mask)

    net = elastic(Tiny(forward, {**_same("a", "b", "c")(), "m": weight(6)}), X).eval()
    assert net.graph.guards["m"] == (frozenset({0}), frozenset({1}))
    none = dict.fromkeys(net.graph.span_names, False)
    assert set(net.extract(none).state_dict()) == {"c.weight", "c.bias"}
    with torch.no_grad(), net.using(none):
        assert torch.equal(net(X), net.extract(none)(X))
