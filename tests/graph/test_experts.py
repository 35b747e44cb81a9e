"""Experts as units: found in every common way to write a router, and cut as a hand-built smaller network is."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.elastic import elastic
from pliant.testing import LAWS, Subject
from pliant.testing.subject import case_of

TOLD = ("widest_equals_original", "sliced_equals_extracted", "permutation", "leave_one_axis_out", "cost_falls")
HIDDEN, INNER, TOKENS = 6, 12, 7

Route = Callable[["Mixture", Tensor, Tensor], Tensor]


class Mixture(nn.Module):
    """Experts of two matrices each, stacked; `route` says how a token's share of each expert is written."""

    def __init__(self, route: Route, *, experts: int = 8, inner: int = INNER, k: int = 2) -> None:
        super().__init__()
        self.route, self.k, self.experts = route, k, experts
        self.gate = nn.Linear(HIDDEN, experts)
        self.up = nn.Parameter(torch.randn(experts, inner, HIDDEN) * 0.5)
        self.down = nn.Parameter(torch.randn(experts, HIDDEN, inner) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.route(self, x, self.gate(x).softmax(-1))


def _mixed(s: Mixture, x: Tensor, share: Tensor) -> Tensor:
    """Every expert runs, each with its share."""
    inner = torch.relu(torch.einsum("nh,eih->nei", x, s.up))
    return torch.einsum("ne,nei,ehi->nh", share, inner, s.down)


def dense(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    return _mixed(s, x, p)


def scatter_mask(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    value, chosen = p.topk(s.k, -1)
    return _mixed(s, x, torch.zeros_like(p).scatter(-1, chosen, value / value.sum(-1, keepdim=True)))


def scatter_zeros(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    value, chosen = p.topk(s.k, -1)
    return _mixed(s, x, torch.zeros(len(x), s.experts).scatter_add_(1, chosen, value))


def one_hot_mask(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    value, chosen = p.topk(s.k, -1)
    return _mixed(s, x, (F.one_hot(chosen, s.experts) * value[..., None]).sum(1))


def compared_mask(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    value, chosen = p.topk(s.k, -1)
    hit = chosen[..., None] == torch.arange(s.experts)
    return _mixed(s, x, (hit * value[..., None]).sum(1))


def batched(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """The chosen experts' weights are looked up for each token."""
    value, chosen = p.topk(s.k, -1)
    inner = torch.relu(torch.einsum("nh,nkih->nki", x, s.up[chosen]))
    return torch.einsum("nk,nki,nkhi->nh", value, inner, s.down[chosen])


def switch(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """One expert a token, with a capacity (Switch Transformers)."""
    value, chosen = p.max(-1)
    mask = F.one_hot(chosen, s.experts)
    mask = mask * (mask.cumsum(0) <= 3)
    return _mixed(s, x, mask * value[:, None])


def expert_choice(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """Each expert chooses its tokens."""
    value, tokens = p.T.topk(3, -1)
    inner = torch.relu(torch.einsum("ech,eih->eci", x[tokens], s.up))
    out = torch.einsum("ec,eci,ehi->ech", value, inner, s.down)
    return torch.zeros_like(x).index_add(0, tokens.reshape(-1), out.reshape(-1, HIDDEN))


def second_choice(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """The second expert is the best after the first was struck off."""
    first = p.argmax(-1, keepdim=True)
    second = p.scatter(-1, first, -torch.inf).argmax(-1, keepdim=True)
    chosen = torch.cat([first, second], -1)
    return _mixed(s, x, torch.zeros_like(p).scatter(-1, chosen, p.gather(-1, chosen)))


def _grouped_mm(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
    import_module("transformers.integrations.moe")  # defines the operator
    out: Tensor = torch.ops.transformers.grouped_mm_fallback(x, w.transpose(1, 2), offs)
    return out


def _ends(ids: Tensor, experts: int) -> Tensor:
    """Where the rows of each expert end."""
    return torch.histc(ids.float(), experts, 0, experts - 1).cumsum(0, dtype=torch.int32)


def grouped(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """Rows are sorted by expert, multiplied in runs and put back (transformers' way for many experts)."""
    value, chosen = p.topk(s.k, -1)
    ids, order = chosen.reshape(-1).sort()
    offs = _ends(ids, s.experts)
    out = _grouped_mm(torch.relu(_grouped_mm(x[order // s.k], s.up, offs)), s.down, offs)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return (out * value.reshape(-1)[order][:, None])[back].view(len(x), s.k, HIDDEN).sum(1)


def grouped_argsort(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """As `grouped`, undone by sorting the order itself."""
    value, chosen = p.topk(s.k, -1)
    order = chosen.reshape(-1).argsort()
    offs = _ends(chosen.reshape(-1)[order], s.experts)
    out = _grouped_mm(torch.relu(_grouped_mm(x[order // s.k], s.up, offs)), s.down, offs)
    return (out[order.argsort()].view(len(x), s.k, HIDDEN) * value[..., None]).sum(1)


def grouped_added(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """As `grouped`, added up where each row's token is."""
    value, chosen = p.topk(s.k, -1)
    ids, order = chosen.reshape(-1).sort()
    offs, token = _ends(ids, s.experts), order // s.k
    out = _grouped_mm(torch.relu(_grouped_mm(x[token], s.up, offs)), s.down, offs)
    return torch.zeros_like(x).index_add(0, token, out * value.reshape(-1)[order][:, None])


FLOORS = {dense: 1, switch: 1, expert_choice: 1}
ROUTES = [dense, scatter_mask, scatter_zeros, one_hot_mask, compared_mask, batched, switch, expert_choice,
          second_choice, *([grouped, grouped_argsort, grouped_added] if find_spec("transformers") else [])]  # fmt: skip


def make(route: Route) -> Mixture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Mixture(route)


def tokens() -> Tensor:
    return torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(2))


def cut(wide: Mixture, experts: int, inner: int) -> Mixture:
    """The same class with fewer and narrower experts, filled by hand."""
    small = Mixture(wide.route, experts=experts, inner=inner)
    small.load_state_dict({"gate.weight": wide.gate.weight[:experts], "gate.bias": wide.gate.bias[:experts],
                           "up": wide.up[:experts, :inner], "down": wide.down[:experts, :, :inner]})  # fmt: skip
    return small


SUBJECTS = [Subject(route.__name__, partial(make, route), tokens) for route in ROUTES]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_experts_are_found_and_cut(subject: Subject) -> None:
    wide, x, net = subject.make(), tokens(), case_of(subject).family
    assert isinstance(wide, Mixture)
    found = {g.kind: (g.units, g.floor, {name for name, _ in g.where}) for g in net.graph.groups}
    stacked = {"gate.weight", "gate.bias", "up", "down"}
    assert found == {"experts": (8, FLOORS.get(wide.route, 2), stacked), "width": (INNER, 1, {"up", "down"})}  # type: ignore[arg-type]
    names = {g.kind: g.name for g in net.graph.groups}
    for experts, inner in ((8, 12), (4, 12), (2, 6)):
        config = {names["experts"]: experts, names["width"]: inner}
        wanted = cut(wide, experts, inner)(x)
        torch.testing.assert_close(net.extract(config)(x), wanted)
        with net.using(config):
            torch.testing.assert_close(net(x), wanted)


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_laws_hold_for_experts(subject: Subject) -> None:
    for name in TOLD:
        LAWS[name](subject)


def _number(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """The experts' numbers are taken for numbers."""
    value, chosen = p.topk(s.k, -1)
    return _mixed(s, x, torch.zeros_like(p).scatter(-1, chosen, value)) * (1 + chosen.float().mean(-1, keepdim=True))


def _ordered_rows(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """Rows sorted by expert are told apart by their place."""
    value, chosen = p.topk(1, -1)
    _, order = chosen.reshape(-1).sort()
    mask = torch.zeros_like(p).scatter(-1, chosen, value)
    return _mixed(s, x, mask) + x[order].cumsum(0)


def _other_tally(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """Runs end where those of other rows do."""
    order = p.argmax(-1).sort().indices
    other = p.argmin(-1).sort().values
    offs = _ends(other, s.experts)
    out = _grouped_mm(x[order], s.up, offs)
    return _mixed(s, x, F.one_hot(p.argmax(-1), s.experts).float()) + out[order.argsort()].sum(-1, keepdim=True)


def _one_named(s: Mixture, x: Tensor, p: Tensor) -> Tensor:
    """One expert is always added."""
    value, chosen = p.topk(s.k, -1)
    return _mixed(s, x, torch.zeros_like(p).scatter(-1, chosen, value) * (1 + (chosen == 0).any(-1, keepdim=True)))


OTHERS = [_number, _ordered_rows, _one_named, *([_other_tally] if find_spec("transformers") else [])]


@pytest.mark.parametrize("route", OTHERS, ids=lambda route: route.__name__)
def test_any_other_use_of_an_expert_number_fixes_the_experts(route: Route) -> None:
    groups = elastic(make(route), tokens()).graph.groups
    assert [(g.kind, g.units) for g in groups] == [("width", INNER)]


def test_a_mixtral_with_fewer_experts_is_the_smaller_mixtral() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}  # fmt: skip
    torch.manual_seed(0)
    wide, narrow = (
        transformers.MixtralForCausalLM(transformers.MixtralConfig(num_local_experts=n, **sizes)).eval() for n in (6, 4)
    )
    ids = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))
    net = elastic(wide, {"input_ids": ids})
    experts = [group for group in net.graph.groups if group.kind == "experts"]
    assert [(g.name, g.units, g.floor) for g in experts] == [(f"experts:model.layers.{i}.mlp", 6, 2) for i in range(2)]
    cuts = {name: tensor[:4] if "mlp" in name else tensor for name, tensor in wide.state_dict().items()}
    narrow.load_state_dict(cuts)
    small = net.extract({group.name: 4 for group in experts})
    torch.testing.assert_close(small(input_ids=ids).logits, narrow(input_ids=ids).logits)


class Loop(nn.Module):
    """Experts as modules of their own, run one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(HIDDEN, INNER), nn.ReLU(), nn.Linear(INNER, HIDDEN)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        value, chosen = self.gate(x).softmax(-1).topk(2)
        share = (F.one_hot(chosen, 4) * value[..., None]).sum(1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + share[:, i, None] * expert(x)
        return out


def test_experts_that_are_modules_stay_and_get_narrower() -> None:
    torch.manual_seed(0)
    net = elastic(Loop(), tokens())
    assert sorted((g.name, g.units) for g in net.graph.groups) == [(f"width:experts.{i}.0", INNER) for i in range(4)]


def test_fewer_experts_than_are_chosen_cannot_be_asked_for() -> None:
    wide, x = make(scatter_mask), tokens()
    with pytest.raises(ValueError, match="chooses 2 of them at a time, got 1"):
        elastic(wide, x, choices={"experts:*": [1, 8]})
    net = elastic(wide, x, choices={"experts:*": [0.01, 1.0]})
    knob = next(knob for knob in net.space if knob.name.startswith("experts:"))
    assert knob.choices == (2, 8)


class Groups(nn.Module):
    """Experts in groups, of which the best are chosen first (DeepSeek-V3): a unit is a group."""

    def forward(self, x: Tensor) -> Tensor:
        score = self.gate(x).sigmoid()
        best = score.view(-1, 4, 2).sum(-1).topk(2).indices
        open_ = torch.zeros(len(x), 4).scatter_(1, best, 1)[..., None].expand(-1, 4, 2).reshape(-1, 8)
        chosen = score.masked_fill(~open_.bool(), 0.0).topk(3).indices
        share = torch.zeros_like(score).scatter(1, chosen, score.gather(1, chosen))
        return torch.einsum("ne,nh,eih->ni", share, x, self.up)

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(HIDDEN, 8), nn.Parameter(torch.randn(8, INNER, HIDDEN))


def test_groups_of_experts_are_units_with_the_floor_of_both_choices() -> None:
    torch.manual_seed(0)
    groups = elastic(Groups(), tokens()).graph.groups
    assert [(g.kind, g.units, g.floor) for g in groups] == [("experts", 4, 2)]
