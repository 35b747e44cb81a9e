"""Inner units: dimensions of heads, channels of groups; and the outer ones where nothing was asked for."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.core import call, main_output, seeded
from pliant.elastic import Elastic, elastic
from pliant.graph.inner import fits
from pliant.testing import LAWS, Subject
from pliant.testing.subject import case_of, gap

Kept = dict[str, list[int]]


class Attention(nn.Module):
    """Self-attention with every size its own; `how` is the way it is written."""

    def __init__(self, heads: int = 3, size: int = 4, kv: int = 0, *, how: str = "fused", values: int = 0) -> None:
        super().__init__()
        self.heads, self.size, self.kv, self.how, self.values = heads, size, kv or heads, how, values or size
        self.inp = nn.Linear(5, 12)
        self.q = nn.Linear(12, heads * size)
        self.k = nn.Linear(12, self.kv * size, bias=False)  # softmax does not see it
        self.v = nn.Linear(12, self.kv * self.values)
        self.o = nn.Linear(heads * self.values, 12)
        self.norm = nn.LayerNorm(size) if how == "normed" else nn.Identity()
        self.head = nn.Linear(12, 3)
        self.pool = nn.Conv1d(size, size, 3, padding=1, groups=size) if how == "pooled" else None
        self.register_buffer("frequencies", torch.tensor([1.0, 0.3]))
        self.scale = 4**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        batch, time, _ = x.shape
        split = {"unflatten": lambda y, heads, size: y.unflatten(-1, (heads, size)).transpose(1, 2)}.get(
            self.how, lambda y, heads, size: y.view(batch, time, heads, size).transpose(1, 2)
        )
        q = self.norm(split(self.q(x), self.heads, self.size))  # type: ignore[no-untyped-call]
        k = self.norm(split(self.k(x), self.kv, self.size))  # type: ignore[no-untyped-call]
        v = split(self.v(x), self.kv, self.values)  # type: ignore[no-untyped-call]
        if self.how == "rotary":
            angle = torch.arange(time)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
            q, k = (t * angle.cos() + t.roll(2, -1) * angle.sin() for t in (q, k))
        if self.how == "frequencies":
            angle = torch.outer(torch.arange(time, dtype=torch.float32), self.frequencies).repeat(1, 2)  # type: ignore[arg-type]
            q, k = (t * angle.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angle.sin() for t in (q, k))
        if self.how == "partial":  # what a partial rotary embedding does where the part is the whole
            q, k = (torch.cat([t[..., :4] * torch.arange(time)[:, None].cos(), t[..., 4:]], -1) for t in (q, k))
        if self.pool is not None:  # as MViT does
            q, k = (self.pool(t.flatten(0, 1).mT).mT.reshape(batch, self.heads, time, self.size) for t in (q, k))
        y = self.mix(q, k, v)
        return self.head(x + self.o(y.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.how == "gqa":
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        if self.how == "expanded":
            k, v = (t.expand(-1, self.heads, -1, -1) for t in (k, v))
        elif self.how == "broadcast":
            k, v = (t[:, :, None].broadcast_to(-1, -1, self.heads // self.kv, -1, -1).flatten(1, 2) for t in (k, v))
        elif 1 < self.kv < self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        if self.how == "eager":
            return (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        if self.how == "einsum":
            scores = torch.einsum("bhtd,bhsd->bhts", q, k) * self.scale
            return torch.einsum("bhts,bhsd->bhtd", scores.softmax(-1), v)
        if self.how == "flat":  # as nn.MultiheadAttention and T5 write it
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            weights = torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2), alpha=self.scale).softmax(-1)
            return torch.bmm(weights, v).unflatten(0, (-1, self.heads))  # type: ignore[no-any-return, no-untyped-call]
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale if self.how == "scaled" else None)


class FusedAttention(nn.Module):
    """One projection for queries, keys and values: `[3, heads, size]`, or `[heads, 3 * size]`."""

    def __init__(self, *, inner: bool) -> None:
        super().__init__()
        self.inner = inner
        self.inp, self.qkv, self.o, self.head = (nn.Linear(*s) for s in ((5, 12), (12, 36), (12, 12), (12, 3)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        y = self.qkv(x)
        if self.inner:
            q, k, v = y.view(*y.shape[:2], 3, 12).transpose(1, 2).chunk(3, -1)
        else:
            q, k, v = y.view(*y.shape[:2], 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x + self.o(y.reshape(*y.shape[:2], -1)))  # type: ignore[no-any-return]


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        return self.head(x + self.attn(x, x, x, need_weights=False)[0])  # type: ignore[no-any-return]


def _example(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=seeded(0, "inner"))


def _made(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.rand(parameter.shape) * 0.3)
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "fused": Attention,
    "eager": lambda: Attention(how="eager"),
    "einsum": lambda: Attention(how="einsum"),
    "flat": lambda: Attention(how="flat"),
    "unflatten": lambda: Attention(how="unflatten"),
    "normed": lambda: Attention(how="normed"),
    "scaled": lambda: Attention(how="scaled"),
    "repeated": lambda: Attention(4, kv=2),
    "gqa": lambda: Attention(4, kv=2, how="gqa"),
    "mqa": lambda: Attention(4, kv=1),
    "mqa-eager": lambda: Attention(4, kv=1, how="eager"),
    "mqa-expanded": lambda: Attention(4, kv=1, how="expanded"),
    "mqa-gqa": lambda: Attention(4, kv=1, how="gqa"),
    "qkv-outer": lambda: FusedAttention(inner=False),
    "qkv-inner": lambda: FusedAttention(inner=True),
    "multihead": Multihead,
}
QUICK = ("fused", "eager", "gqa", "mqa-gqa", "qkv-outer")


def _slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


SOME = [*QUICK, *_slow(*(name for name in NETS if name not in QUICK))]
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "broadcast": lambda: Attention(4, kv=2, how="broadcast"),
    "partial": lambda: Attention(how="partial"),
    "pooled": lambda: Attention(how="pooled"),
    "frequencies": lambda: Attention(how="frequencies"),
}
HEADS = {"broadcast": 2, "repeated": 2, "gqa": 2, "mqa": 4, "mqa-eager": 4, "mqa-expanded": 4, "mqa-gqa": 4}
TOGETHER = {"qkv-outer": ("head_dim:qkv",), "multihead": ("head_dim:attn.qkv",)}
"""Where the three lie on an axis of their own, one size serves all."""
LAWFUL = ("widest_equals_original", "sliced_equals_extracted", "permutation", "leave_one_axis_out", "cost_falls",
          "slices_only", "save_load", "depth_skips")  # fmt: skip


def _subject(name: str, choices: Any) -> Subject:
    kind = "whole" if choices is None else next(iter(choices))
    return Subject(f"{name}-{kind}", lambda: _made((NETS | OTHERS)[name]), lambda: _example(6, 5), choices=choices)


def _found(net: Elastic) -> list[tuple[str, int]]:
    return sorted((g.name, g.units) for i, g in enumerate(net.graph.groups) if i not in net.dropped)


@pytest.mark.parametrize("name", [*SOME, *OTHERS])
def test_heads_are_found_by_default(name: str) -> None:
    subject = _subject(name, None)
    found = case_of(subject).family.graph.groups
    heads = [g.units for g in found if g.kind == "heads"]
    assert heads == [HEADS.get(name, 3)]
    assert sorted(g.kind for g in found) == ["heads", "width"]
    for law in ("permutation", "leave_one_axis_out", "sliced_equals_extracted", "cost_falls"):
        LAWS[law](subject)


@pytest.mark.parametrize("name", SOME)
def test_every_head_keeps_its_first_dimensions(name: str) -> None:
    subject = _subject(name, {"head_dim:*": [1, 0.5, 1.0]})
    net = case_of(subject).family
    names = {g.name: g.units for g in net.graph.groups if g.kind != "width"}
    assert names == dict.fromkeys(TOGETHER.get(name, ("head_dim:qk", "head_dim:v")), 4)
    assert not [each for each in net.graph.rigid if each.reason.startswith("head_dim: ")]
    assert net.dropped == ()
    for law in LAWFUL:
        LAWS[law](subject)


@pytest.mark.parametrize("name", ["fused", *_slow("eager", "gqa", "multihead")])
def test_onnx(name: str) -> None:
    LAWS["extracted_equals_onnx"](_subject(name, {"head_dim:*": [1, 0.5, 1.0]}))


def _first(tensor: Tensor, kept: int, heads: int, axis: int) -> Tensor:
    """The first `kept` entries of every head."""
    parts = tensor.unflatten(axis, (heads, -1)).narrow(axis + 1, 0, kept)  # type: ignore[no-untyped-call]
    return parts.flatten(axis, axis + 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["fused", "gqa", *_slow("eager", "flat", "einsum")])
def test_against_a_narrower_network_filled_by_hand(how: str) -> None:
    kv = 2 if how == "gqa" else 4
    model = _made(lambda: Attention(4, 4, kv, how=how)).eval()
    small = Attention(4, 2, kv, how="scaled" if how == "fused" else how, values=3).eval()
    if how == "gqa":
        small.mix = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.5)  # type: ignore[method-assign]
    state = model.state_dict()
    for part, heads, kept in (("q", 4, 2), ("k", kv, 2), ("v", kv, 3)):
        for name in (f"{part}.weight", f"{part}.bias"):
            if name in state:
                state[name] = _first(state[name], kept, heads, 0)
    state["o.weight"] = _first(state["o.weight"], 3, 4, 1)
    small.load_state_dict(state)
    x = _example(6, 5)
    net = elastic(model, x, choices={"head_dim:*": [2, 3, 4]}).eval()
    config = {"head_dim:qk": 2, "head_dim:v": 3}
    with torch.no_grad(), net.using(config):
        assert gap(net(x), small(x)) < 1e-6
        assert gap(net.extract(config)(x), small(x)) < 1e-6
    assert net.extract(config, into=copy.deepcopy(small)) is not None


@pytest.mark.parametrize("name", [name for name in SOME if "normed" not in getattr(name, "values", ())])
def test_leaving_out_dimensions_without_weights_changes_nothing(name: str) -> None:
    """Above all: the scale of the scores is that of the whole head."""
    model, x = _made(NETS[name]).eval(), _example(6, 5)
    net = elastic(model, x, choices={"head_dim:*": [2, 4]}).eval()
    kept = {g.name: 2 for g in net.graph.groups if g.kind == "head_dim"}
    with torch.no_grad():
        for i, group in enumerate(net.graph.groups):
            for state, axis in group.where if group.kind == "head_dim" else ():
                content = net.graph.state_axes[state][axis]
                gone = torch.from_numpy((content.group == i) & (content.rank >= 2))
                net.get_parameter(state).index_fill_(axis, gone.nonzero().flatten(), 0.0)
        whole = net(x)
        with net.using(kept):
            assert gap(net(x), whole) < 1e-6
        assert gap(net.extract(kept)(x), whole) < 1e-6


def test_rotary_dimensions_stay_and_the_report_says_where() -> None:
    model, x = _made(lambda: Attention(how="rotary")), _example(6, 5)
    net = elastic(model, x, choices={"head_dim:*": [0.5, 1.0]})
    assert [name for name, _ in _found(net) if name.startswith("head_dim")] == ["head_dim:v"]
    (rigid,) = [each for each in net.graph.rigid if each.reason.startswith("head_dim: ")]
    assert rigid.reason.startswith("head_dim: its dimensions meet numbers that stay")
    assert "angle.cos()" in rigid.line
    with pytest.raises(ValueError, match=r"'head_dim:qk' fits no knob; .*its dimensions meet numbers that stay"):
        elastic(model, x, choices={"head_dim:qk": [0.5, 1.0]})
    assert [g.kind for g in elastic(model, x).graph.groups if g.kind != "width"] == ["heads"]


def test_rotary_dimensions_with_frequencies_of_their_own_go_in_pairs() -> None:
    subject = _subject("frequencies", {"head_dim:*": [1, 1.0]})
    net = case_of(subject).family
    assert [(name, units) for name, units in _found(net) if name.startswith("head_dim")] == [
        ("head_dim:qk", 2), ("head_dim:v", 4),
    ]  # fmt: skip
    assert ("frequencies", 0) in next(g.where for g in net.graph.groups if g.name == "head_dim:qk")
    for law in ("permutation", "leave_one_axis_out", "sliced_equals_extracted", "cost_falls"):
        LAWS[law](subject)


def test_what_is_not_asked_for_keeps_its_heads() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([_Residual(), _Residual()])
            self.inp, self.head = nn.Linear(5, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inp(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)  # type: ignore[no-any-return]

    net = elastic(_made(Two), _example(6, 5), choices={"head_dim:blocks.1": [0.5, 1.0]})
    assert [name for name, _ in _found(net)] == [
        "head_dim:blocks.1.attn.qkv", "heads:blocks.0.attn", "width:blocks.0.attn.out_proj",
    ]  # fmt: skip
    tied = elastic(_made(Two), _example(6, 5), choices={"head_dim:*": [2, 4]}, tie=["head_dim:blocks.*"])
    assert [knob.name for knob in tied.space if knob.kind == "head_dim"] == ["head_dim:blocks.*"]
    every = elastic(_made(Two), _example(6, 5), choices={"*": [1.0]})
    assert not any(g.kind == "head_dim" for g in every.graph.groups)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


def test_patterns() -> None:
    assert fits("head_dim:blocks.0.attn.qk", "head_dim:blocks.0.attn")
    assert fits("head_dim:blocks.0.attn.qk", "head_dim:*.qk")
    assert not fits("head_dim:blocks.0.attn.qk", "head_dim:blocks.1*")
    assert not fits("width:blocks.0.attn", "width:blocks.0")
    assert fits("block:layers.0", "block:*")


# -- groups of channels ----------------------------------------------------------------------------------------------


class Groups(nn.Module):
    """ResNeXt's block: 1x1, grouped 3x3 and 1x1, with group normalisation."""

    def __init__(self, hidden: int = 12, made: int = 12, width: int = 8, *, up: bool = False, groups: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.conv1 = nn.Conv2d(width, hidden, 1)
        self.norm1 = nn.GroupNorm(groups, hidden)
        make = nn.ConvTranspose2d if up else nn.Conv2d
        self.conv2 = make(hidden, made, 3, padding=1, groups=groups)
        self.norm2 = nn.GroupNorm(groups, made)
        self.conv3 = nn.Conv2d(made, width, 1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.gelu(self.norm1(self.conv1(x)))
        y = self.conv3(F.gelu(self.norm2(self.conv2(y))))
        return self.head((x + y).mean((2, 3)))  # type: ignore[no-any-return]


def _image() -> Tensor:
    return _example(3, 5, 5)


@pytest.mark.parametrize("up", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["down", "up"])
def test_channels_of_groups(up: bool) -> None:
    subject = Subject(f"groups-{up}", lambda: _made(lambda: Groups(12, 18, up=up)), _image,
                      choices={"channels:*": [1, 0.5, 1.0]})  # fmt: skip
    net = case_of(subject).family
    assert _found(net) == [("channels:conv2.out", 6), ("channels:norm1", 4), ("width:stem", 8)]
    assert net.dropped == ()
    assert not [each for each in net.graph.rigid if each.reason.startswith("channels: ")]
    for law in (*LAWFUL, "extracted_equals_onnx"):
        LAWS[law](subject)


@pytest.mark.parametrize("up", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["down", "up"])
def test_whole_groups_by_default(up: bool) -> None:
    subject = Subject(f"whole groups-{up}", lambda: _made(lambda: Groups(12, 18, up=up)), _image)
    found = case_of(subject).family.graph.groups
    assert [(g.name, g.units) for g in found] == [("width:stem", 8), ("width:conv1", 3)]
    for law in ("permutation", "sliced_equals_extracted", "cost_falls"):
        LAWS[law](subject)


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_a_narrower_cardinality_filled_by_hand(up: bool) -> None:
    model = _made(lambda: Groups(12, 18, up=up)).eval()
    small, state = Groups(6, 9, up=up).eval(), model.state_dict()
    for name in ("conv1.weight", "conv1.bias", "norm1.weight", "norm1.bias"):
        state[name] = _first(state[name], 2, 3, 0)
    for name in ("conv2.bias", "norm2.weight", "norm2.bias"):
        state[name] = _first(state[name], 3, 3, 0)
    taps = _first(state["conv2.weight"], 2 if up else 3, 3, 0)
    state["conv2.weight"] = taps[:, :3] if up else taps[:, :2]
    state["conv3.weight"] = _first(state["conv3.weight"], 3, 3, 1)
    small.load_state_dict(state)
    choices = {"channels:conv2.in": [2, 4], "channels:conv2.out": [3, 6]}
    net = elastic(model, _image(), choices=choices, min_size=1).eval()
    config = {"channels:conv2.in": 2, "channels:conv2.out": 3}
    with torch.no_grad(), net.using(config):
        assert gap(net(_image()), small(_image())) < 1e-6
    assert net.extract(config, into=small) is small


def test_grouped_channels_that_are_an_output_stay() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 3, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.stem(x))  # type: ignore[no-any-return]

    net = elastic(_made(Last), _image(), choices={"channels:out": [0.5, 1.0]}, min_size=1)
    assert _found(net) == [("channels:out.in", 4)]
    with torch.no_grad(), net.using({"channels:out.in": 2}):
        assert net(_image()).shape == (2, 6, 3, 3)
        assert gap(net.extract({"channels:out.in": 2})(_image()), net(_image())) < 1e-6


def test_depthwise_channels_are_units_as_ever() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.deep, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.deep(self.stem(x)))  # type: ignore[no-any-return]

    net = elastic(_made(Depthwise), _image(), choices={"channels:*": [0.5, 1.0]})
    assert _found(net) == [("channels:deep", 8)]
    with torch.no_grad(), net.using({"channels:deep": 4}):
        assert gap(net.extract({"channels:deep": 4})(_image()), net(_image())) < 1e-6


# -- networks of others ----------------------------------------------------------------------------------------------


def _hf(name: str, implementation: str) -> tuple[nn.Module, Any, str]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    small = {"num_hidden_layers": 1, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 16}
    if name == "gpt2":
        config = transformers.GPT2Config(n_layer=1, n_head=3, n_embd=12, vocab_size=20, n_positions=8)
        kind, x, module = transformers.GPT2LMHeadModel, torch.arange(12).view(2, 6), "transformer.h.0.attn"
    elif name == "bert":
        config = transformers.BertConfig(**small, vocab_size=20, max_position_embeddings=8)
        kind, x, module = transformers.BertModel, torch.arange(12).view(2, 6), "encoder.layer.0.attention.self"
    else:
        config = transformers.ViTConfig(**small, image_size=8, patch_size=4)
        kind, x, module = transformers.ViTModel, _example(3, 8, 8), ""
    config._attn_implementation = implementation
    return kind(config).eval(), x, module


@pytest.mark.parametrize("implementation", ["sdpa", *_slow("eager")])
@pytest.mark.parametrize("name", ["gpt2", *_slow("bert", "vit")])
def test_hugging_face(name: str, implementation: str) -> None:
    model, x, module = _hf(name, implementation)
    net = elastic(model, x, choices={"head_dim:*": [2, 4]}).eval()
    inner = {g.name: g.units for g in net.graph.groups if g.kind == "head_dim"}
    assert list(inner.values()) == [4, 4]
    assert not any(g.kind == "heads" for g in net.graph.groups)
    if module:
        assert sorted(inner) == [f"head_dim:{module}.qk", f"head_dim:{module}.v"]
    small = dict.fromkeys(inner, 2)
    with torch.no_grad(), net.using(small):
        assert gap(main_output(call(net.extract(small).eval(), x)), main_output(call(net, x))) < 1e-6
    assert net.cost(small).parameters < net.cost(net.space.largest()).parameters
