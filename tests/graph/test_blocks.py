"""Modules that can be left out where they are asked for: what stays is the network with an identity in their place."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import call, main_output, seeded
from pliant.elastic import elastic
from pliant.elastic.recipes import Nested, Sandwich
from pliant.report.look import look_page
from pliant.testing import LAWS, Subject
from pliant.testing.subject import case_of, gap


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU; no shortcut."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Plain(nn.Module):
    """A VGG: blocks without shortcuts, of which some keep the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 8)
        self.stages = nn.ModuleList([nn.Sequential(Conv(8, 8), Conv(8, 8)), Conv(8, 12, 2), Conv(12, 12)])
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class PostNorm(nn.Module):
    """torch's own encoder with the normalisation after each sum, as in BERT."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.inp, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(12, 3, 16, dropout=0.1, batch_first=True, norm_first=first) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Masked(nn.Module):
    """A layer that takes a mask besides the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.layer, self.head = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        class Layer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Linear(12, 12)

            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                return torch.tanh(self.a(x)) * mask[..., None]

        self.layer = Layer()  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.inp(x), (x[..., 0] > 0).float()))  # type: ignore[no-any-return]


def _made(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build()
        with torch.no_grad():
            for tensor in [*net.parameters(), *net.buffers()]:
                if tensor.dim() == 1:
                    tensor.add_(torch.rand(tensor.shape) * 0.3)
    return net


def _x(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=seeded(0, "blocks"))


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any]]] = {
    "plain": (Plain, _x(3, 6, 6), {"block:stages.?": [False, True], "block:stages.0.?": [False, True]}),
    "post-norm": (PostNorm, _x(6, 5), {"block:layers.?": [False, True]}),
    "pre-norm": (lambda: PostNorm(True), _x(6, 5), {"block:layers.?": [False, True]}),
    "masked": (Masked, _x(6, 5), {"block:layer": [False, True]}),
}
BLOCKS = {
    "plain": ["stages.0", "stages.0.0", "stages.0.1", "stages.2"],
    "post-norm": ["layers.0", "layers.1"],
    "pre-norm": ["layers.0", "layers.1"],
    "masked": ["layer"],
}


class First(nn.Module):
    """The identity, whatever else is given."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


def _without(model: nn.Module, *paths: str) -> nn.Module:
    model = copy.deepcopy(model)
    for path in paths:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, First())
    return model


@pytest.mark.parametrize("name", ["plain", "post-norm", "masked", pytest.param("pre-norm", marks=pytest.mark.slow)])
def test_a_skipped_block_is_an_identity(name: str) -> None:
    make, x, choices = NETS[name]
    model = _made(make).eval()
    net = elastic(model, x, choices=choices).eval()
    found = [span.removeprefix("block:") for span in net.graph.span_names if span.startswith("block:")]
    assert sorted(found) == BLOCKS[name]
    assert set(found) <= set(net.graph.skippable)
    for path in found:
        wanted, config = _without(model, path), {f"block:{path}": False}
        small = net.extract(config)
        with torch.no_grad(), net.using(config):
            assert torch.equal(net(x), wanted(x))
            assert torch.equal(small(x), wanted(x))
        assert set(small.state_dict()) == {k for k in model.state_dict() if not k.startswith(f"{path}.")}
    with torch.no_grad():
        every = {f"block:{path}": False for path in found}
        assert torch.equal(net.extract(every)(x), _without(model, *sorted(found, key=len, reverse=True))(x))


@pytest.mark.parametrize("name", ["plain", "post-norm", "masked", pytest.param("pre-norm", marks=pytest.mark.slow)])
def test_laws(name: str) -> None:
    make, x, choices = NETS[name]
    silent = {f"layers.{i}.self_attn.in_proj_bias[0]": "of the keys" for i in range(2)}
    subject = Subject(f"blocks-{name}", lambda: _made(make), lambda: x, silent=silent, choices=choices)
    assert case_of(subject).family.dropped == ()
    for law in ("widest_equals_original", "sliced_equals_extracted", "permutation", "leave_one_axis_out", "cost_falls",
                "slices_only", "save_load", "deterministic", "depth_skips"):  # fmt: skip
        LAWS[law](subject)


def test_onnx() -> None:
    make, x, choices = NETS["plain"]
    LAWS["extracted_equals_onnx"](Subject("blocks-onnx", lambda: _made(make), lambda: x, choices=choices))


def test_what_enters_and_what_leaves_are_as_wide() -> None:
    free = elastic(_made(Plain), _x(3, 6, 6))
    assert {g.units for g in free.graph.groups} == {8, 12}
    assert len(free.graph.groups) == 5
    choices = {"block:stages.0.?": [False, True], "block:stages.2": [False, True]}
    tied = elastic(_made(Plain), _x(3, 6, 6), choices=choices)
    assert [(g.name, g.units) for g in tied.graph.groups] == [("width:stem.conv", 8), ("width:stages", 12)]
    half = {"width:stem.conv": 4, "width:stages": 6}
    for path in ("stages.0.0", "stages.0.1", "stages.2"):
        config = {**half, f"block:{path}": False}
        small = tied.extract(config).eval()
        assert small(_x(3, 6, 6)).shape == (2, 5)
        assert not [key for key in small.state_dict() if key.startswith(path)]
        assert sum(p.numel() for p in small.parameters()) == tied.cost(config).parameters


def test_a_block_in_training_leaves_its_statistics_alone() -> None:
    net = elastic(_made(Plain), _x(3, 6, 6), choices={"block:stages.2": [False, True]}).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with net.using({"block:stages.2": False}):
        net(_x(3, 6, 6)).sum().backward()
    after = net.state_dict()
    assert torch.equal(after["stages.2.norm.running_mean"], before["stages.2.norm.running_mean"])
    assert not torch.equal(after["stages.1.norm.running_mean"], before["stages.1.norm.running_mean"])
    skipped = net.get_parameter("stages.2.conv.weight").grad
    assert skipped is None or not skipped.any()


def test_blocks_cross_residual_branches() -> None:
    """A pre-norm layer ends in the sum that ends its own second branch; the outer choice goes first."""
    model = _made(lambda: PostNorm(True)).eval()
    net = elastic(model, _x(6, 5), choices={"block:layers.?": [False, True]}).eval()
    spans = [name for name in net.graph.span_names if name.startswith("depth:layers.0")]
    assert len(spans) == 2
    with torch.no_grad():
        wanted = _without(model, "layers.0")(_x(6, 5))
        for kept in (True, False):
            config = {"block:layers.0": False, **dict.fromkeys(spans, kept)}
            assert torch.equal(net.extract(config)(_x(6, 5)), wanted)
            with net.using(config):
                assert torch.equal(net(_x(6, 5)), wanted)
        for path, span in (("self_attn", spans[0]), ("linear2", spans[1])):
            silent = copy.deepcopy(model)
            last = silent.layers[0].self_attn.out_proj if path == "self_attn" else silent.layers[0].linear2  # type: ignore[index, union-attr]
            last.weight.data.zero_()
            last.bias.data.zero_()
            with net.using({span: False}):
                assert gap(net(_x(6, 5)), silent(_x(6, 5))) < 1e-6


def test_what_cannot_be_skipped_is_refused_with_the_reason() -> None:
    model, x = _made(Plain), _x(3, 6, 6)
    with pytest.raises(ValueError, match=r"'block:stages.1' fits no knob; .*none of the tensors it takes") as told:
        elastic(model, x, choices={"block:stages.1": [False, True]})
    skippable = str(told.value).partition("modules that can be skipped are ")[2].split(", ")
    assert {"stages.0", "stages.0.0", "stages.0.0.norm", "stages.2"} <= set(skippable)
    assert not {"stem", "stages.1", "head"} & set(skippable)
    with pytest.raises(ValueError, match="'block:nowhere' fits no knob"):
        elastic(model, x, choices={"block:nowhere": [False, True]})
    assert not [s for s in elastic(model, x, choices={"*": [1.0]}).graph.span_names if s.startswith("block:")]


class Odd(nn.Module):
    def __init__(self, f: Callable[["Odd", Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.a, self.out = f, nn.Linear(6, 6), nn.Linear(6, 3)

        class Pair(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Linear(6, 6)

            def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
                z = self.a(x)
                return (z, z.relu()) if y is None else (z + y, z)

        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


@pytest.mark.parametrize(
    ("f", "why"),
    [
        (lambda s, x: s.out(s.a(s.a(x) + x)), "it gives out 2 tensors"),
        (lambda s, x: s.out(sum(s.pair(x))), "it gives out 2 tensors"),
        (lambda s, x: s.out(s.pair(x, x.exp())[0]), "2 of the tensors it takes are like"),
    ],
    ids=["twice", "pair", "two"],
)  # fmt: skip
def test_a_module_with_several_ends(f: Callable[[Odd, Tensor], Tensor], why: str) -> None:
    path = "pair" if "tensors it takes" in why or "sum" in f.__code__.co_names else "a"
    with pytest.raises(ValueError, match=why):
        elastic(_made(lambda: Odd(f)), _x(6), choices={f"block:{path}": [False, True]})


def test_a_module_called_twice_in_a_row_is_one_block() -> None:
    model = _made(lambda: Odd(lambda s, x: s.out(s.a(s.a(x))))).eval()
    net = elastic(model, _x(6), choices={"block:a": [False, True]}).eval()
    with torch.no_grad(), net.using({"block:a": False}):
        assert torch.equal(net(_x(6)), model.out(_x(6)))  # type: ignore[operator]


def test_recipes_report_and_look_know_blocks() -> None:
    make, x, choices = NETS["plain"]
    net = elastic(_made(make), x, choices=choices)
    names = {knob.name for knob in net.space if knob.kind == "block"}
    assert "block:stages.0" in names
    assert names <= {name for name, _, _ in net.report().depth}
    assert "block:stages.0" in str(net.report())
    page = look_page(net)
    assert "block:stages.0" in page
    assert "whole modules" in page
    largest, smallest, *_ = Sandwich().draw(net, seeded(0, "blocks"))
    assert all(largest[name] for name in names)
    assert not any(smallest[name] for name in names)
    drawn = [Nested(whole=0.0).draw(net, seeded(i, "blocks"))[0] for i in range(40)]
    assert all({config[name] for config in drawn} == {False, True} for name in names)


@pytest.mark.parametrize("name", ["bert", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_hugging_face_layers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if name == "bert":
        small = {"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 16}
        config = transformers.BertConfig(**small, vocab_size=20, max_position_embeddings=8)
        model, path = transformers.BertModel(config).eval(), "encoder.layer.1"
    else:
        config = transformers.GPT2Config(n_layer=2, n_head=3, n_embd=12, vocab_size=20, n_positions=8)
        model, path = transformers.GPT2LMHeadModel(config).eval(), "transformer.h.1"
    x = torch.arange(12).view(2, 6)
    net = elastic(model, x, choices={f"block:{path}": [False, True]}).eval()
    assert f"block:{path}" in net.graph.span_names

    class Passed(nn.Module):
        def forward(self, x: Tensor, *_: Any, **__: Any) -> Any:
            return x

    layers = model.get_submodule(path.rpartition(".")[0])
    layers[1] = Passed()
    with torch.no_grad(), net.using({f"block:{path}": False}):
        wanted = main_output(call(model, x))
        assert torch.equal(main_output(call(net, x)), wanted)
