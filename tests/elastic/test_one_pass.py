"""One-pass networks: every width is its column, reads nothing of later shells, and what cannot be is refused."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pliant
from pliant import nets
from pliant.core import PliantError
from pliant.data import Dataset
from pliant.elastic import OnePass, one_pass
from pliant.elastic.onepass.operators import (
    PrefixHeads,
    PrefixNorm,
    SummedHeads,
    applied,
    prefix_heads,
    prefix_norm,
    summed_heads,
)
from pliant.elastic.recipes import AllWidths
from pliant.learn import Settings, evaluate, train
from pliant.learn.losses import cross_entropy

Make = Callable[[], nn.Module]


class Norms(nn.Module):
    """RMS norm over 18 units (uneven shells), group norm inside shells, a gated width and a weight used transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 18), nn.RMSNorm(18)
        self.gate, self.up, self.down = nn.Linear(18, 12), nn.Linear(18, 12), nn.Parameter(torch.randn(12, 16) * 0.3)
        self.groups, self.head = nn.GroupNorm(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = (F.silu(self.gate(x)) * self.up(x)) @ self.down
        logits: Tensor = self.head(self.groups(x))
        return logits


class Dense(nn.Module):
    """Per-position scores and a mean of them: a head that is a convolution, two outputs, joined shells."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1, groups=1)
        self.deep = nn.ConvTranspose2d(20, 8, 3, padding=1)
        self.scores = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = torch.relu(self.stem(x))
        a = torch.relu(self.deep(torch.cat([a, torch.relu(self.wide(a))], 1)))
        scores = self.scores(a)
        return {"scores": scores, "mean": scores.mean((2, 3))}


CASES: dict[str, tuple[Make, Callable[[], Tensor]]] = {
    "mlp": (lambda: nets.mlp((12,), 5, hidden=(16, 13)), lambda: torch.randn(6, 12)),
    "resnet": (lambda: nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=8), lambda: torch.randn(6, 3, 8, 8)),
    "dwsep": (lambda: nets.dwsep((3, 8, 8), 5, stem=8, channels=(16, 24), strides=(1, 2)),
              lambda: torch.randn(6, 3, 8, 8)),
    "gpt": (lambda: nets.gpt((10,), 20, dim=16, depth=2, heads=4, tied=False), lambda: torch.randint(20, (3, 10))),
    "vit": (lambda: nets.vit((3, 8, 8), 5, patch=4, dim=16, depth=2, heads=4), lambda: torch.randn(3, 3, 8, 8)),
    "norms": (Norms, lambda: torch.randn(6, 6)),
    "dense": (Dense, lambda: torch.randn(2, 2, 5, 5)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _made(name: str, **options: object) -> tuple[OnePass, Tensor]:
    make, draw = CASES[name]
    x = draw()
    net = one_pass(make(), x, **options)  # type: ignore[arg-type]
    with torch.no_grad():  # biases of zero and scales of one would hide which of them is used where
        for tensor in net.parameters():
            if tensor.dim() == 1:
                tensor.add_(torch.randn_like(tensor) * 0.2)
            elif name == "gpt":  # small weights would hide much of the rest
                tensor.mul_(10)
    return net, x


def _gap(first: object, second: object) -> float:
    mine, theirs = pliant.core.tensors_of(first), pliant.core.tensors_of(second)
    assert [t.shape for t in mine] == [t.shape for t in theirs]
    return max(float((a - b).detach().abs().max()) for a, b in zip(mine, theirs, strict=True))


def _row(output: object, k: int) -> list[Tensor]:
    return [tensor[k] for tensor in pliant.core.tensors_of(output)]


# -- every width is its column ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["own", "shared"])
@pytest.mark.parametrize("name", CASES)
def test_a_width_alone_is_its_column_of_the_one_pass(name: str, heads: str) -> None:
    net, x = _made(name, heads=heads)
    for training in (True, False):
        net.train(training)
        columns = copy.deepcopy(net)(x)
        spread = _gap(_row(columns, 0), _row(columns, net.widths - 1))
        assert spread > 1e-2, "widths must differ for this test to see anything"
        for k in range(net.widths):
            assert _gap(copy.deepcopy(net)(x, width=k + 1), _row(columns, k)) < 1e-5
        net(x)  # statistics of a training step for the evaluation


@pytest.mark.parametrize("name", CASES)
def test_anytime_and_extraction_give_the_columns(name: str) -> None:
    net, x = _made(name)
    net(x)
    net.eval()
    columns = net(x)
    outputs = list(net.anytime(x))
    assert len(outputs) == net.widths == 4
    for k, output in enumerate(outputs):
        assert _gap(output, _row(columns, k)) < 1e-5
        small = net.extract(k + 1)
        assert _gap(small(x), _row(columns, k)) < 1e-5
    sizes = [sum(p.numel() for p in net.extract(k + 1).parameters()) for k in range(4)]
    assert sizes == sorted(set(sizes))


def test_a_training_step_updates_the_same_statistics_at_every_width() -> None:
    net, x = _made("resnet")
    narrow = copy.deepcopy(net)
    net(x)
    narrow(x, width=2)
    assert torch.allclose(net.bn1.running_mean[:4], narrow.bn1.running_mean[:4], atol=1e-6)  # type: ignore[union-attr, index]
    assert bool((narrow.bn1.running_mean[4:] == 0).all())  # type: ignore[union-attr, index]


def test_anytime_computes_only_what_is_new() -> None:
    net, x = _made("mlp")
    found, spent = net.anytime(x), []
    for _ in range(4):
        with FlopCounterMode(display=False) as counter:
            next(found)
        spent.append(counter.get_total_flops() // (2 * len(x)))
    first, second = (4, 8, 12, 16), (3, 6, 10, 13)
    rows = zip((4, 4, 4, 4), (3, 3, 4, 3), first, second, strict=True)
    assert spent == [new * 12 + also * read + 5 * head for new, also, read, head in rows]


# -- against networks built by hand ----------------------------------------------------------------------------------


def test_a_hand_written_narrow_mlp_gives_the_same() -> None:
    net, x = _made("mlp")
    state = net.state_dict()
    for k, (first, second) in enumerate(zip((4, 8, 12, 16), (3, 6, 10, 13), strict=True)):
        own = nn.Sequential(nn.Linear(12, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 5))
        weights = [state["body.0.weight"][:first], state["body.2.weight"][:second, :first],
                   state["head.weight"][k, :, :second]]  # fmt: skip
        biases = [state["body.0.bias"][:first], state["body.2.bias"][:second], state["head.bias"][k]]
        with torch.no_grad():
            for layer, weight, bias in zip(own[::2], weights, biases, strict=True):  # type: ignore[call-overload]
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
        assert _gap(own(x), net(x, width=k + 1)) < 1e-6
        assert _gap(own(x), net(x)[k]) < 1e-6


def test_a_hand_written_narrow_resnet_gives_the_same() -> None:
    """A prefix of a batch-normalised network is a plain network of its class."""
    net, x = _made("resnet", heads="shared")
    net(x)
    net.eval()
    narrow = nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=4).eval()
    whole, part = net.state_dict(), narrow.state_dict()
    for name, tensor in part.items():
        source = whole[name][1] if name == "fc.bias" else whole[name]
        tensor.copy_(source[tuple(slice(n) for n in tensor.shape)])
    assert _gap(narrow(x), net(x, width=2)) < 1e-5
    assert _gap(narrow(x), net(x)[1]) < 1e-5


def test_prefix_norm_is_the_norm_of_each_prefix() -> None:
    shells = torch.tensor([0, 1, 0, 2, 1, 1, 2])
    which = F.one_hot(shells, 3).t().double().contiguous()
    sizes = which.sum(1)
    shares = torch.triu(sizes[:, None] / sizes.cumsum(0)[None])
    x = torch.randn(4, 7, dtype=torch.double) + 100
    for centred in (True, False):
        found = prefix_norm(x, which, shares, None, None, 1e-3, centred, False)
        for j in range(3):
            part = x[:, shells <= j]
            size = part.shape[1:]
            whole = F.layer_norm(part, size, eps=1e-3) if centred else F.rms_norm(part, size, eps=1e-3)
            torch.testing.assert_close(found[:, shells == j], whole[:, shells[shells <= j] == j])


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("sizes", [(3, 3, 3), (2, 4, 3)])
def test_the_gradient_of_the_norm(centred: bool, sizes: tuple[int, ...]) -> None:
    which = F.one_hot(torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)), 3).t().double().contiguous()
    total = which.sum(1)
    shares = torch.triu(total[:, None] / total.cumsum(0)[None])
    x, w, b = (torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((2, 9), (9,), (9,)))
    back = shares / total[:, None]
    even = len(set(sizes)) == 1
    assert torch.autograd.gradcheck(
        lambda x, w, b: PrefixNorm.apply(x, which, shares, back, w, b, (1e-3, centred, even)),  # type: ignore[no-untyped-call]
        (x, w, b),
    )


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_a_column_are_those_of_the_width_alone(name: str) -> None:
    net, x = _made(name)
    net.double()
    x = x.double() if x.is_floating_point() else x
    for k in (0, 2):
        found = []
        for output in (_row(net(x), k), pliant.core.tensors_of(net(x, width=k + 1))):
            net.zero_grad()
            sum((t * t).sum() for t in output).backward()  # type: ignore[union-attr]
            found.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()})
        for parameter, gradient in found[0].items():
            torch.testing.assert_close(gradient, found[1][parameter], atol=1e-9, rtol=1e-7, msg=parameter)


@pytest.mark.parametrize("name", ["mlp", "dwsep", "gpt", "norms", "dense"])
def test_without_a_leak_the_narrowest_width_trains_as_if_alone(name: str) -> None:
    net, x = _made(name, leak=0.0)
    other = copy.deepcopy(net)
    assert _gap(net(x), other(x)) == 0
    for output, who in ((net(x), net), (_row(other(x), 0), other)):
        sum((t * t).sum() for t in pliant.core.tensors_of(output)).backward()  # type: ignore[union-attr]
        assert any(p.grad is not None for p in who.parameters())
    grads = dict(other.named_parameters())
    checked = 0
    for node in net.graph.program.states:
        value, parameter = net.plan.values[node.name], dict(net.named_parameters()).get(node.target)
        if parameter is None or parameter.dim() > net.graph.states[node.target].dim() or not value.axes:
            continue
        keep = torch.ones((), dtype=torch.bool)
        for axis, vector in value.axes.items():
            shape = [-1 if a == axis else 1 for a in range(parameter.dim())]
            keep = keep & torch.from_numpy(vector == 1).reshape(shape)
        keep = keep.expand_as(parameter)
        if keep.shape != parameter.shape or node.target.endswith(("head.bias", "scores.bias")):
            continue
        mine, theirs = parameter.grad, grads[node.target].grad
        assert mine is not None
        torch.testing.assert_close(mine[keep], theirs[keep], atol=1e-5, rtol=1e-4, msg=node.target)  # type: ignore[index]
        checked += 1
    assert checked > 3


def test_a_leak_between_scales_what_goes_back() -> None:
    """Gradients are linear in the leak where no path crosses shells twice."""
    found = {}
    for leak in (0.0, 0.3, 1.0):
        torch.manual_seed(0)
        net = one_pass(nets.mlp((6,), 3, hidden=(8,)), torch.randn(4, 6), leak=leak)
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
        net(x)[3].pow(2).sum().backward()
        found[leak] = dict(net.named_parameters())["body.0.weight"].grad
    assert float((found[1.0] - found[0.0]).abs().max()) > 1e-3  # type: ignore[operator]
    torch.testing.assert_close(found[0.3], 0.7 * found[0.0] + 0.3 * found[1.0])  # type: ignore[operator]


@pytest.mark.parametrize("name", ["mlp", "resnet", "gpt", "dense"])
@pytest.mark.parametrize("leak", [1.0, 0.3])
def test_what_is_not_read_stays_zero(name: str, leak: float) -> None:
    net, x = _made(name, leak=leak)
    with torch.no_grad():
        for step in net.plan.steps:  # what `_made` stirred or a user set
            if getattr(step, "out_of", None) is not None:
                assert bool((net.state(net.plan.values[step.weight].origin[0]) == 0).any())  # type: ignore[index, attr-defined]
    before = {n: p.detach() == 0 for n, p in net.named_parameters() if p.dim() > 1}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        sum(t.pow(2).mean() for t in pliant.core.tensors_of(net(x))).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    for name_, parameter in net.named_parameters():
        if name_ in before and bool(before[name_].any()):
            held = before[name_]
            assert bool((parameter[held] == 0).all()), name_
            assert bool((parameter[~held] != 0).any())
            for moment in optimizer.state[parameter].values():
                assert moment.dim() == 0 or bool((moment[held] == 0).all()), name_
    columns = net(x)
    assert _gap(_row(columns, 0), net(x, width=1)) < 1e-5


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_heads_of_prefixes_are_masked_products(biased: bool, shared: bool) -> None:
    """Values and gradients against the plain product of every column with zeros where it does not read."""
    ends, shells = (2, 3, 7), torch.tensor([1, 1, 2, 3, 3, 3, 3])
    rows, leak = torch.arange(1, 4)[:, None, None], 0.3
    mask, back = (shells <= rows).double(), torch.where(shells == rows, 1.0, leak).double()
    x = torch.randn(4, 5, 7, dtype=torch.double)
    weight = torch.randn(*(() if shared else (3,)), 6, 7, dtype=torch.double)
    bias = torch.randn(3, 6, dtype=torch.double) if biased else None
    given = [tensor.requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    weights, plain = torch.randn(3, 4, 5, 6, dtype=torch.double), "abi,soi->sabo"
    function, forward = (SummedHeads, summed_heads) if shared else (PrefixHeads, prefix_heads)
    for leaks in (False, True):
        wanted = torch.einsum(plain, x.detach() if leaks else x, weight * mask)
        if leaks:
            seen = torch.einsum(plain, x, (weight * mask * back).detach())
            wanted = wanted + seen - seen.detach()
        wanted = wanted if bias is None else wanted + bias[:, None, None]
        scaled = (leak if leaks else 1.0) if shared else (back if leaks else None)
        made = applied(function, x, weight, bias, scaled, ends)
        torch.testing.assert_close(made, wanted)
        found = torch.autograd.grad((made * weights).sum(), given)
        torch.testing.assert_close(found, torch.autograd.grad((wanted * weights).sum(), given))
    with torch.no_grad():
        assert torch.equal(forward(x, weight, bias, ends), made)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = forward(x.float(), weight.float(), None if bias is None else bias.float(), ends)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), wanted, atol=0.1, rtol=0.05)


# -- what is there at the start --------------------------------------------------------------------------------------


def test_units_start_with_the_variance_of_their_fan_in() -> None:
    torch.manual_seed(0)
    dense = nets.mlp((64,), 10, hidden=(512, 512))
    net = one_pass(dense, torch.randn(4, 64))
    ours, theirs = net.state_dict(), dense.state_dict()
    whole = float(theirs["body.2.weight"].std())
    for j, inputs in enumerate((128, 256, 384, 512)):
        rows = ours["body.2.weight"][128 * j : 128 * (j + 1)]
        assert bool((rows[:, inputs:] == 0).all())
        assert float(rows[:, :inputs].std()) == pytest.approx(whole * (512 / inputs) ** 0.5, rel=0.02)
        column = ours["head.weight"][j]
        assert bool((column[:, inputs:] == 0).all())
        assert float(column[:, :inputs].std()) == pytest.approx(
            float(theirs["head.weight"].std()) * (512 / inputs) ** 0.5, rel=0.05
        )
    assert torch.equal(ours["body.0.weight"], theirs["body.0.weight"])
    assert torch.equal(dense.state_dict()["body.2.weight"], theirs["body.2.weight"])


def test_shells_have_the_same_shares_and_a_unit_at_least() -> None:
    net, _ = _made("norms")
    assert sorted(net.units.values()) == [(2, 4, 6, 8), (3, 6, 9, 12), (4, 9, 14, 18)]
    small = one_pass(nets.mlp((6,), 3, hidden=(5,)), torch.randn(2, 6), shells=5)
    assert list(small.units.values()) == [(1, 2, 3, 4, 5)]
    with pytest.raises(PliantError, match=r"width:body.0: has 5 units, too few for 6 shells. shells=5"):
        one_pass(nets.mlp((6,), 3, hidden=(5,)), torch.randn(2, 6), shells=6)


def test_frozen_widths_stay_whole() -> None:
    model, x = nets.resnet((3, 8, 8), 5, blocks=(1, 1), width=8), torch.randn(4, 3, 8, 8)
    family = pliant.elastic(model, x, choices={"*": [0.5, 1.0], "depth:*": [True], "width:conv1": [1.0]}, min_size=1)
    with pytest.raises(PliantError, match="a rigid width before it"):
        one_pass(family)
    hidden = pliant.elastic(nets.mlp((6,), 3, hidden=(8, 8)), torch.randn(2, 6), choices={"width:body.0": [1.0]})
    net = one_pass(hidden, shells=2)
    assert list(net.units) == ["width:body.2"]
    x = torch.randn(3, 6)
    assert _gap(net(x)[0], net(x, width=1)) < 1e-6


def test_state_dict_round_trip() -> None:
    net, x = _made("resnet")
    other, _ = _made("resnet")
    net(x)
    assert _gap(net.eval()(x), other.eval()(x)) > 1e-3
    other.load_state_dict(net.state_dict())
    assert _gap(net(x), other(x)) == 0
    names = set(nets.resnet((3, 8, 8), 5, blocks=(2, 1), width=8).state_dict())
    assert set(net.state_dict()) == names


def test_arguments() -> None:
    model, x = nets.mlp((6,), 3, hidden=(8,)), torch.randn(2, 6)
    net = one_pass(model, x)
    for width in (0, 5, True, 1.0):
        with pytest.raises(ValueError, match=r"width must be in 1..4"):
            net(x, width=width)
    for options, told in (({"shells": 0}, "shells"), ({"leak": 1.5}, "leak"), ({"heads": "none"}, "heads")):
        with pytest.raises(ValueError, match=told):
            one_pass(model, x, **options)
    with pytest.raises(TypeError, match="example"):
        one_pass(model)
    with pytest.raises(TypeError, match=r"Elastic or an nn\.Module"):
        one_pass("resnet")  # type: ignore[arg-type]
    assert net.training is model.training
    assert repr(net).startswith("OnePass(")


# -- what cannot be --------------------------------------------------------------------------------------------------


class Squeezed(nn.Module):
    """A convolution with squeeze-excite; `squeeze` channels between."""

    def __init__(self, squeeze: int = 4) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(2, 8, 3), nn.Conv2d(8, squeeze, 1), nn.Conv2d(squeeze, 8, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Over(nn.Module):
    """Two layers with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(6, 16), nn.Linear(16, 3), between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.between(self.first(x)))
        return out


REFUSED: dict[str, tuple[Make, tuple[int, ...], str]] = {
    "squeeze-excite": (Squeezed, (2, 2, 6, 6), "aten.mul.*squeeze-excite.*without squeeze-excite"),
    "rigid squeeze-excite": (lambda: Squeezed(1), (2, 2, 6, 6), "in up.*squeeze-excite"),
    "group norm": (lambda: Over(nn.GroupNorm(2, 16)), (2, 6), "group normalisation across shells|too few"),
    "one group": (lambda: Over(nn.GroupNorm(1, 16)), (2, 6), "group normalisation across shells"),
    "softmax": (lambda: Over(lambda x: torch.softmax(x, -1)), (2, 6), "softmax over an elastic width"),
    "mean": (lambda: Over(lambda x: x - x.mean(-1, keepdim=True)), (2, 6), "mean over an elastic width.*nn.LayerNorm"),
    "unit": (lambda: Over(lambda x: x * x[:, :1]), (2, 6), "."),
    "sorted": (lambda: Over(lambda x: x.sort(-1)[0]), (2, 6), "."),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_across_shells_is_refused_by_name(name: str) -> None:
    make, shape, told = REFUSED[name]
    with pytest.raises(PliantError, match=f"(?s){told}"):
        one_pass(make(), torch.randn(shape))


def test_tied_embeddings_are_refused_by_name() -> None:
    with pytest.raises(PliantError, match=r"head.*tied embeddings.*tied=False"):
        one_pass(nets.gpt((8,), 11, dim=16, depth=1, heads=4), torch.randint(11, (2, 8)))


def test_a_network_in_which_nothing_bends_is_refused() -> None:
    with pytest.raises(PliantError, match="nothing bends"):
        one_pass(nn.Linear(6, 3), torch.randn(2, 6))


# -- training --------------------------------------------------------------------------------------------------------


def _blobs(n: int = 256) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (n,), generator=generator)
    x = torch.randn(n, 6, generator=generator) + torch.eye(6)[:3][y] * 5
    return Dataset.of({"x_train": x[:192].numpy(), "y_train": y[:192].numpy(), "x_val": x[192:].numpy(),
                       "y_val": y[192:].numpy(), "x_test": x[192:].numpy(), "y_test": y[192:].numpy()})  # fmt: skip


def test_train_takes_its_recipe_and_resumes(tmp_path: Path) -> None:
    data, settings = _blobs(), Settings(lr=1e-2, batch_size=32, progress=False)

    def fresh() -> OnePass:
        torch.manual_seed(0)
        return one_pass(nets.mlp((6,), 3, hidden=(16, 16), dropout=0.1), torch.randn(2, 6))

    net = fresh()
    history = train(net, data, epochs=20, settings=settings)
    losses = [record.loss for record in history.epochs]
    assert losses[-1] < 0.5 * losses[0]
    assert history.epochs[-1].val is not None
    for width in range(1, 5):
        assert evaluate(net.at(width), data.val) > 0.8
    assert history.epochs[-1].val == pytest.approx(evaluate(net.at(4), data.val))
    again = fresh()
    train(again, data, epochs=20, settings=settings, run=tmp_path / "run")
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name


def test_a_step_is_the_mean_of_the_losses_of_all_widths() -> None:
    net, x = _made("mlp")
    y = torch.randint(5, (len(x),))
    loss = AllWidths().step(net, (x, y), cross_entropy)
    alone = torch.stack([cross_entropy(net(x, width=k + 1), y) for k in range(4)]).mean()
    torch.testing.assert_close(loss, alone)
    with pytest.raises(TypeError, match=r"pliant.one_pass"):
        AllWidths().step(nn.Linear(2, 2), (x, y), cross_entropy)


def test_dense_outputs_train_under_autocast() -> None:
    net, x = _made("vit", leak=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(x)
        output.float().pow(2).mean().backward()
    assert output.shape == (4, 3, 5)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
