"""Every way in which a network is called, built and wrapped."""

import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from pliant.core import PliantError, call
from pliant.elastic import Elastic, elastic
from pliant.graph import trace
from pliant.graph.capture import capture
from pliant.testing import LAWS, Subject
from pliant.testing.subject import gap

TOLD = ("input_unchanged", "widest_equals_original", "sliced_equals_extracted", "permutation", "slices_only",
        "save_load", "bad_input")  # fmt: skip


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y, Z = floats(4, 6), floats(4, 6, seed=1), floats(4, 3, seed=2)
Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Batch:
    """A dataclass that torch knows nothing of."""

    a: Tensor
    b: Tensor | None = None
    factor: int = 2


class Takes(nn.Module):
    """Takes its tensors in containers, and flags beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, data: Any, n: float = 3.0, *more: Tensor, flag: bool = True, mode: str = "x",
                extra: Any = None, **named: Tensor) -> Any:  # fmt: skip
        if isinstance(data, dict):
            x = data["x"] + data["ys"][0]
        elif isinstance(data, Batch):
            x = data.a * data.factor
        elif isinstance(data, Pair):
            x = data.a + 2 * data.b
        else:
            x = data[0] + 2 * data[1][0]
        y = self.b(torch.relu(self.a(x))) * n
        for tensor in (*more, *named.values(), *(extra or ())):
            y = y * 2 + tensor
        return Batch(y, None) if flag and mode == "x" else (y, [y * 2])


EXAMPLES: dict[str, Any] = {
    "dict": ({"x": X, "ys": [Y]},),
    "dataclass": (Batch(X, None),),
    "named-tuple": {"data": Pair(X, Y)},
    "list": ([X, (Y,)],),
    "constant": ([X, (Y,)], 4.0),
    "variadic": ([X, (Y,)], 4.0, Z, floats(4, 3, seed=5)),
    "keywords": {"data": (X, [Y]), "flag": False, "z": Z, "extra": [floats(4, 3, seed=6)]},
    "same-tensor-twice": ([X, (X,)],),
}


def _takes() -> Takes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Takes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_nested_arguments(name: str) -> None:
    example = EXAMPLES[name]
    subject = Subject(name, _takes, lambda: example)
    for law in TOLD:
        LAWS[law](subject)
    net = elastic(_takes(), example)
    assert [(g.name, g.units) for g in net.graph.groups] == [("width:a", 8)]


def test_a_tensor_that_is_given_twice_is_two_inputs() -> None:
    net = elastic(_takes(), EXAMPLES["same-tensor-twice"])
    assert gap(net([X, (Y,)]), _takes()([X, (Y,)])) == 0.0


def test_forward_takes_what_the_original_took() -> None:
    net, model = elastic(_takes(), EXAMPLES["constant"]), _takes()
    wanted = model([X, (Y,)], 4.0)
    for got in (net((X, [Y]), 4.0), net([X, (Y,)], n=4.0, flag=True, mode="x"), net(data=[X, (Y,)], n=4.0)):
        assert torch.equal(got.a, wanted.a)
        assert got.b is None
    seven = [X.repeat(2, 1)[:7], (Y.repeat(2, 1)[:7],)]
    assert torch.allclose(net(seven, 4.0).a, model(seven, 4.0).a, atol=1e-6)


@pytest.mark.parametrize(
    ("action", "kind", "message"),
    [
        (lambda net: net([X, (Y,)], 5.0), ValueError, "n was 4.0 when the network was traced .* got 5.0"),
        (lambda net: net([X, (Y,)]), ValueError, "n was 4.0 when the network was traced .* got 3.0"),
        (lambda net: net([X, (Y,)], 4.0, mode="y"), ValueError, "mode was 'x' .* got 'y'; trace it again"),
        (lambda net: net([X, (Y,)], 4.0, Z), TypeError, "more was a sequence of 0 .* got a tuple of 1"),
        (lambda net: net([X, Y], 4.0), TypeError, r"data\[1\] was a sequence of 1 .* got a tensor"),
        (lambda net: net([X, (None,)], 4.0), TypeError, r"data\[1\]\[0\] was a tensor .* got None"),
        (lambda net: net([X, (Y,)], X), TypeError, "n was 4.0 .* got a tensor"),
        (lambda net: net([X, (Y,)], 4.0, other=Z), TypeError, "without other"),
        (lambda net: net(n=4.0), TypeError, "Takes was traced with the inputs data_0, data_1_0; got .*missing"),
    ],
)
def test_another_call_is_refused_with_the_argument_and_both_values(
    action: Callable[[Elastic], Any], kind: type[Exception], message: str
) -> None:
    net = elastic(_takes(), EXAMPLES["constant"])
    with pytest.raises(kind, match=message):
        action(net)


def test_constants_are_checked_in_what_was_extracted() -> None:
    small = elastic(_takes(), EXAMPLES["constant"]).extract({"width:a": 4})
    assert torch.equal(small([X, (Y,)], 4.0).a, small([X, (Y,)]).a)
    with pytest.raises(ValueError, match=r"n was 4\.0 when the network was traced"):
        small([X, (Y,)], 5.0)


def test_objects_with_unknown_content_are_refused() -> None:
    with pytest.raises(PliantError, match=r"Takes: the argument data holds a object among tensors.* give its tensors"):
        trace(_takes(), (object(),))
    model = nn.Sequential(nn.Linear(6, 3), _Returns())
    with pytest.raises(PliantError, match="Sequential: the network returns a object among tensors"):
        trace(model, X)


class _Returns(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x, object()


# -- how networks are built ------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """Three layers, one of which is made by whoever asks."""

    def __init__(self, a: nn.Module | None = None, b: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = a or nn.Linear(6, 8), b or nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return out


class Scaled(nn.Module):
    """A parametrization with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.rand(8, 1) + 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.g


class Checkpointed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(checkpoint(lambda t: torch.relu(self.b(torch.relu(self.a(t)))), x, use_reentrant=False))
        return out


class Tied(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.d = nn.Linear(8, 8, bias=False)
        self.d.weight = self.b.weight  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.d(torch.relu(self.b(torch.relu(self.a(x))))))
        return out


class Buffers(Plain):
    k: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("k", torch.rand(8) + 0.5, persistent=False)
        self.plain = torch.rand(8) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)) * self.k * self.plain)))
        return out


class Stubs(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.dq = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.dq(super().forward(self.q(x)))
        return out


def _hooked() -> nn.Module:
    model = Plain()
    model.a.register_forward_hook(lambda module, args, out: out * 2)
    model.b.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    return model


def _compiled_part() -> nn.Module:
    model = Plain()
    model.b = torch.compile(model.b, backend="eager")  # type: ignore[assignment]
    return model


def _scaled() -> nn.Module:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", Scaled())
    return Plain(None, layer)


BUILT: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "weight-norm": (lambda: Plain(parametrizations.weight_norm(nn.Linear(6, 8))), [8, 8]),
    "spectral-norm": (lambda: Plain(parametrizations.spectral_norm(nn.Linear(6, 8))), [8, 8]),
    "spectral-norm-by-hook": (lambda: Plain(nn.utils.spectral_norm(nn.Linear(6, 8))), [8, 8]),
    "parametrization": (_scaled, [8, 8]),
    "checkpoint": (Checkpointed, [8, 8]),
    "tied": (Tied, [8]),
    "buffers": (Buffers, [8, 8]),
    "quantization-stubs": (Stubs, [8, 8]),
    "hooks": (_hooked, [8, 8]),
}


@pytest.mark.parametrize("name", BUILT)
def test_networks_of_every_make(name: str) -> None:
    make, units = BUILT[name]

    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.rand(p.shape) * 0.3 if p.dim() == 1 else 0.0)
            return model

    subject = Subject(name, made, lambda: X)
    for law in ("input_unchanged", "widest_equals_original", "sliced_equals_extracted", "permutation"):
        LAWS[law](subject)
    net = elastic(made(), X)
    assert [g.units for g in net.graph.groups] == units
    assert net.graph.notes == []
    assert net.graph.rigid == []


def test_a_compiled_part_is_traced_as_it_was_written() -> None:
    net = elastic(_compiled_part(), X)
    assert [(g.name, g.units) for g in net.graph.groups] == [("width:a", 8), ("width:b._orig_mod", 8)]
    assert not net.graph.rigid
    assert not net.graph.notes
    assert net(X).shape == (4, 3)


def test_weight_norm_by_hook_holds_a_weight_that_is_no_leaf() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = Plain(nn.utils.weight_norm(nn.Linear(6, 8)))
    net = elastic(model, X)
    assert [g.units for g in net.graph.groups] == [8, 8]
    assert torch.allclose(net(X), model(X), atol=1e-6)


def test_power_iterations_go_on_in_training_alone() -> None:
    model = nn.utils.spectral_norm(nn.Linear(6, 8))
    net = elastic(nn.Sequential(model, nn.Linear(8, 3)), X)
    u = net.state_dict()["0.weight_u"].clone()
    net.eval()(X)
    assert torch.equal(net.state_dict()["0.weight_u"], u)
    net.train()(X)
    assert not torch.equal(net.state_dict()["0.weight_u"], u)
    assert not net.get_buffer("0.weight_u").requires_grad


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_taken_off(wrap: Callable[[nn.Module], Any]) -> None:
    model = Plain()
    net = elastic(wrap(model), X)
    assert (net.name, set(net.state_dict())) == ("Plain", set(model.state_dict()))
    assert torch.equal(net(X), model(X))


class Views(nn.Module):
    """Two parameters over one memory, in part the same."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.randn(14, 6)
        self.u, self.v = nn.Parameter(memory[:8]), nn.Parameter(memory[6:])
        self.c, self.d = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(torch.relu(F.linear(x, self.u))) + self.d(torch.relu(F.linear(x, self.v)))
        return out


def test_parameters_that_share_memory_stay_whole() -> None:
    model = Views()
    net = trace(model, X)
    assert net.groups == []
    assert torch.equal(elastic(model, X)(X), model(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_precisions(dtype: torch.dtype) -> None:
    model = Plain().to(dtype)
    net = elastic(model, X.to(dtype))
    assert [g.units for g in net.graph.groups] == [8, 8]
    assert torch.equal(net(X.to(dtype)), model(X.to(dtype)))
    assert net.extract(net.space.smallest())(X.to(dtype)).dtype == dtype


def _script(module: nn.Module) -> nn.Module:
    found: nn.Module = torch.jit.trace(module, X)  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)), "0.weight: its size is not known yet. run the"),
        (lambda: Plain().to("meta"), "a.weight: it is on the meta device and holds no numbers. build the model"),
        (lambda: _script(Plain()), "TorchScript has no Python to trace. give the module it was made from"),
        (lambda: nn.Sequential(_script(nn.Linear(6, 8))), "0: TorchScript has no Python to trace"),
    ],
    ids=["lazy", "meta", "script", "script-inside"],
)
def test_what_cannot_be_looked_into_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
    for action in (trace, elastic):
        with pytest.raises(PliantError, match=message.replace(".", r"\.")):
            action(model, X)


# -- sizes that stay free ----------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Axis 0 is time."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.GRU(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o(self.r(x)[0])
        return out


class Messages(nn.Module):
    """A graph network: nodes and edges."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        source, target = edges
        out: Tensor = self.b(torch.zeros_like(y).index_add(0, target, y[source]))
        return out


class Attends(nn.Module):
    """Tokens of any number."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(11, 8), nn.Embedding(32, 8)
        self.q, self.o = nn.Linear(8, 24), nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        n, t = tokens.shape
        x = self.e(tokens) + self.p(torch.arange(t, device=tokens.device))
        q, k, v = self.q(x).view(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, 8)
        out: Tensor = self.o(torch.relu(y))
        return out


class Baked(nn.Module):
    """Open slices and repeats, which export writes down as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        y = torch.relu(self.a(x)).repeat_interleave(torch.tensor([2]).expand(int(rows)), 0, output_size=2 * int(rows))
        out: Tensor = self.b(y[int(rows) :])
        return out


SIZES: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "time-first": (Recurrent, floats(7, 4, 5), floats(9, 3, 5)),
    "graph": (
        Messages,
        (floats(9, 6), torch.arange(18).view(2, 9) % 9),
        (floats(5, 6), torch.arange(8).view(2, 4) % 5),
    ),
    "tokens": (Attends, torch.arange(16).view(2, 8) % 11, torch.arange(39).view(3, 13) % 11),
    "written-down": (Baked, X, floats(7, 6)),
    "batch-of-one": (Plain, X[:1], floats(5, 6)),
}


@pytest.mark.parametrize("name", SIZES)
def test_other_sizes_than_the_example_s(name: str) -> None:
    make, example, other = SIZES[name]
    model = make().eval()
    net = elastic(model, example)
    assert net.graph.groups
    assert net.graph.notes == []
    for given in (example, other):
        assert gap(call(net, given), call(model, given)) <= 1e-6
        with net.using(net.space.smallest()):
            assert gap(call(net, given), call(net.extract(net.space.smallest()), given)) <= 1e-6


def test_a_size_that_must_stay_free() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    program, notes = capture(net, floats(2, 3, 8, 8), dynamic={"input": (2, 3)})
    assert notes == []
    assert next(node.packet for node in program if node.kind == "call") == "aten.conv2d"
    fixed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 2))
    with pytest.raises(PliantError, match=r"input\[2\], input\[3\]: the network runs at no other size"):
        capture(fixed, floats(2, 3, 8, 8), dynamic={"input": (2, 3)})
    with pytest.raises(ValueError, match=r"no input \['image'\]; inputs are input"):
        capture(net, floats(2, 3, 8, 8), dynamic={"image": (2,)})
    with pytest.raises(ValueError, match="input has 4 axes"):
        capture(net, floats(2, 3, 8, 8), dynamic={"input": (7,)})


def test_a_failing_line_of_a_nested_call_is_named() -> None:
    with pytest.raises(PliantError, match=rf"{Path(__file__).name}:\d+ `y = self.b.*cannot trace this network"):
        trace(_takes(), ([floats(4, 5), (floats(4, 5),)],))
