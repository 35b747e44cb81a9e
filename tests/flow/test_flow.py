"""States, joins, counters, calls, choices: what the interpreter makes of forwards, and that its states are right."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pliant.flow import Flow, decides
from pliant.flow.explore import Const, In, Leaf, Out, Scalar


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.experts = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})


def run(flow: Flow, row: Any) -> Any:
    """The network's answer, computed over states, edges and blocks by torch."""
    given = [row] if isinstance(row, Tensor) else list(row)
    number = 0
    for _ in range(500):
        state = flow.states[number]
        made = flow.outputs(state, [tensor.clone() for tensor in given])

        def fetch(arg: Any, given: Any = given, made: Any = made) -> Any:
            return given[arg.index] if isinstance(arg, In) else made[arg.index]

        if state.raised is not None:
            return state.raised
        if state.value is None:
            return build(state.returns, fetch)
        side = int(fetch(state.value))
        edge = state.edges[1 - side if state.keys is None else state.keys.index(side)]
        kinds = flow.states[edge.target].params
        given = [torch.tensor(a.value, dtype=k[0]) if isinstance(a, Const) else fetch(a)
                 for a, k in zip(edge.args, kinds, strict=True)]  # fmt: skip
        number = edge.target
    raise AssertionError("it does not end")


def build(shape: Any, fetch: Any) -> Any:
    if isinstance(shape, Leaf):
        return fetch(shape.arg)
    if isinstance(shape, Scalar):
        return fetch(shape.arg).item()
    kind, inner = next(iter(shape.items()))
    if kind == "dict":
        return {name: build(item, fetch) for name, item in inner.items()}
    if kind in ("list", "tuple"):
        items = [build(item, fetch) for item in inner]
        return items if kind == "list" else tuple(items)
    return inner


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.allclose(one, other, atol=1e-5)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == pytest.approx(other)


class Loops(Base):
    """while with else and break, for with continue."""

    def forward(self, x: Tensor) -> Any:
        steps = 0
        while x.abs().max() > 0.1:
            x = x * 0.6
            steps += 1
            if steps == 9:
                break
        else:
            x = x + 1
        for i, layer in enumerate(self.layers):
            if layer(x).sum() < 0:
                continue
            x = layer(x) * (i + 1)
        return x, steps


class Scalars(Base):
    """Arithmetic, chains and builtins on run-time numbers."""

    def forward(self, x: Tensor) -> Any:
        a = x.max().item()
        b = float(x.mean())
        n = int(x.sum().item() * 3)
        best = max(a, b * 2, 0.25)
        inside = -1 < b <= 0.5
        if not inside or n % 3 == 1:
            x = x * best + n
        flag = bool(x.sum() > 0) and n // 2 >= 0
        return x, best, n, -n, abs(b), round(a), flag, (a + b) / 2**0.5


class Values(Base):
    """Conditional expressions, comprehensions, walrus, any and all."""

    def gate(self, x: Tensor) -> bool:
        if x.sum() > 0:  # noqa: SIM103
            return True
        return False

    def forward(self, x: Tensor) -> Any:
        y = self.layers[0](x) if self.gate(x) else -x
        taken = [layer(x) for layer in self.layers if self.gate(layer(x))]
        if (total := y.sum().item()) > 1.0 and len(taken) > 0:
            y = y + taken[-1] * total
        if any(t.sum() > 2 for t in taken) or all(t.sum() > 0.1 for t in taken):
            y = y * 2
        return {"y": y, "count": len(taken), "both": self.gate(x) and self.gate(y)}


class Choice(Base):
    """Experts by index in lists, dicts and module lists; rows of tensors by index."""

    def forward(self, x: Tensor) -> Any:
        index = x.argmax().item()
        names = ["a", "b", "a", "b"]
        y = self.experts[names[index]](x)  # type: ignore[index]
        scale = {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}[index]  # type: ignore[index]
        place = y.argmax(dim=-1)
        row = self.layers[1].weight[place[0]]  # type: ignore[index]
        return y * scale, row, x[0, place.item()]


class Nested(Base):
    """Functions inside, closures, keyword arguments, defaults, super."""

    def helper(self, x: Tensor, *more: Tensor, scale: float = 2.0, **names: Any) -> Any:
        for each in more:
            if each.sum() > 0:
                return x * scale + each, names
        return x, {}

    def forward(self, x: Tensor) -> Any:
        weight = x.mean()

        def inner(z: Tensor) -> Tensor:
            if z.sum() > weight:
                return z - weight
            return z + weight

        y = inner(self.layers[0](x))
        z, names = self.helper(y, -x, x, scale=0.5, k=1)
        pick = lambda t: t * 2 if t.sum() > 0 else t * 3  # noqa: E731
        z = pick(z)  # type: ignore[no-untyped-call]
        return inner(z), names


class Containers(Base):
    """Lists and dicts grow, aliases stay aliases, None becomes a tensor."""

    def forward(self, x: Tensor) -> Any:
        feats: list[Tensor] = []
        again = feats
        prev = None
        info: dict[str, Any] = {}
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if x.sum() > 0:
                feats.append(x)
            if prev is not None and (x - prev).norm() < 1.0:
                info["near"] = info.get("near", 0) + 1
            prev = x
        out = torch.cat(again, 1) if again else x
        return out, info, len(feats)


class Raises(Base):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            raise ValueError("negative")
        assert x.max() < 100, "large"
        return x * 2


class InPlace(Base):
    """Tensors changed in place, also in lists."""

    def forward(self, x: Tensor) -> Any:
        memory = torch.zeros(1, 4)
        kept = [memory]
        for i in range(3):
            if x[0, i] > 0:
                memory[:, i] = x[:, i] * 2
            else:
                memory += 0.5
        x = x.clone()
        x[0, 0] = 7.0
        return memory, kept[0] * 1.0, x


class Ranged(Base):
    def forward(self, x: Tensor) -> Any:
        n = int(x.abs().sum().item())
        for i in range(min(n, 5)):
            x = x * 0.9 + i
        else:
            x = x + 1
        return x, n


class Wrapped(Base):
    """A decorator, no_grad and a call through a partial function."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            while x.norm() > 1:
                x = self.layers[0](x) * 0.5
        return x


class Stacked(Base):
    """A stack whose depths are what bounds it."""

    def forward(self, x: Tensor) -> Any:
        stack, visits = [(x, 0)], 0
        total = torch.zeros(1, 4)
        while stack:
            y, depth = stack.pop()
            visits += 1
            if depth < 2 and y.sum() > -1:
                stack += [(y * 0.5, depth + 1), (y - 1, depth + 1)]
            else:
                total = total + y
        return total, visits


class Close(Base):
    """allclose, equal, membership, infinities."""

    def forward(self, x: Tensor) -> Any:
        best, n = float("inf"), 0
        while n < 6:
            y = torch.tanh(self.layers[0](x))
            loss = (y - x).abs().sum().item()
            if torch.allclose(x, y, atol=0.3) or loss > best:
                break
            best, x, n = loss, y, n + 1
        return x, best, n, torch.isclose(x, y, atol=0.2), x.argmax().item() in (0, 2)


NETS = [Stacked, Close, Loops, Scalars, Values, Choice, Nested, Containers, InPlace, Ranged, Wrapped]


@pytest.mark.parametrize("kind", NETS, ids=lambda kind: kind.__name__)
def test_the_states_compute_what_the_network_does(kind: type[Base]) -> None:
    net = kind().eval()
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(1, 4, generator=generator) * scale for scale in (0.3, 1.0, 2.0) for _ in range(6)]
    assert decides(net, rows[0])
    flow = Flow(net, rows[0])
    assert len(flow.states) > 1
    for row in rows:
        with torch.no_grad():
            wanted = net(row.clone())
        assert same(wanted, run(flow, row.clone()))


def test_errors_become_ends_of_the_program() -> None:
    net = Raises().eval()
    flow = Flow(net, torch.ones(1, 4))
    assert run(flow, -torch.ones(1, 4)) == ("ValueError", "negative")
    assert run(flow, torch.full((1, 4), 200.0)) == ("AssertionError", "large")
    assert torch.equal(run(flow, torch.ones(1, 4)), torch.full((1, 4), 2.0))


def test_loops_close_and_counters_widen() -> None:
    class Endless(Base):
        def forward(self, x: Tensor) -> Any:
            n, total = 0, 0.0
            while x.norm() > 0.01:
                x = x * 0.5
                total += x.sum().item()
                n += 1
            return x, n, total

    flow = Flow(Endless().eval(), torch.ones(1, 4))
    assert len(flow.states) <= 4
    for scale in (0.001, 1.0, 1000.0):
        x = torch.ones(1, 4) * scale
        assert same(Endless()(x), run(flow, x))


def test_counters_that_index_stay_plain_numbers() -> None:
    class Indexed(Base):
        def forward(self, x: Tensor) -> Any:
            i = 0
            while i < len(self.layers) and x.sum() > -100:
                if self.layers[i](x).sum() > 0:
                    x = x + 1
                i += 1
            return x, i

    flow = Flow(Indexed().eval(), torch.ones(1, 4))
    for value in (-1.0, 0.0, 3.0, -200.0):
        x = torch.full((1, 4), value)
        assert same(Indexed().eval()(x), run(flow, x))


def test_joins_keep_the_number_of_states_small() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

        def forward(self, x: Tensor) -> Any:
            done = 0
            for block in self.blocks:
                if block(x).sum() > 0:
                    x = torch.relu(block(x))
                    done += 1
            return x, done

    flow = Flow(Gates().eval(), torch.randn(1, 4))
    assert len(flow.states) <= 2 * 12 + 3


def test_following_with_forced_decisions_ignores_the_states() -> None:
    net = Loops().eval()
    flow = Flow(net, torch.ones(1, 4))
    x = torch.ones(1, 4)
    assert same(net(x), flow.follow(x, lambda _, side: side))
    sides = itertools.chain([1, 0, 0], itertools.repeat(0))
    margins: list[float] = []
    _, steps = flow.follow(x, lambda _, side: next(sides), margins=margins)
    assert steps == 1
    assert margins[0] == pytest.approx(0.9)


def test_a_network_that_does_not_ask_does_not_decide() -> None:
    assert not decides(nn.Linear(4, 4), torch.ones(1, 4))


def test_what_is_handed_on_does_not_go_through_a_block() -> None:
    flow = Flow(Raises().eval(), torch.ones(1, 4))
    assert isinstance(flow.states[0].value, Out)
    assert all(isinstance(arg, In) for edge in flow.states[0].edges for arg in edge.args)
