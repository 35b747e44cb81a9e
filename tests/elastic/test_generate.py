"""Generation with a cache against generation without, in whole and cut networks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pliant
from pliant import nets
from pliant.core import PliantError
from pliant.elastic import Elastic, decoder, elastic, generate
from pliant.elastic import generate as generate_function
from pliant.export.to_onnx import to_onnx
from pliant.nets.decoder import Decoder

IDS = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(0))


def made(**changes: Any) -> Any:
    torch.manual_seed(0)
    net = nets.gpt(**{"shape": (24,), "classes": 11, "dim": 32, "depth": 3, "heads": 4, **changes}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return net


@pytest.fixture(scope="module")
def net() -> Any:
    return made()


@pytest.fixture(scope="module")
def family(net: nn.Module) -> Elastic:
    return elastic(net, IDS, verbose=False)


def configs(family: Elastic) -> Iterator[tuple[str, dict[str, Any]]]:
    def smaller(kind: str) -> dict[str, Any]:
        return {knob.name: knob.choices[0] for knob in family.space if knob.kind == kind}

    yield "whole", {}
    yield "heads", smaller("heads")
    yield "width", smaller("width")
    depths = sorted(knob.name for knob in family.space if knob.kind == "depth")
    yield "depth", dict.fromkeys(depths, False)
    yield "no attention", {name: False for name in depths if name.endswith("attn")}
    yield "one block", {name: False for name in depths if ".1." in name}
    yield "smallest", dict(family.space.smallest())
    generator = torch.Generator().manual_seed(3)
    for i in range(4):
        yield f"random {i}", dict(family.sample(generator))


def plainly(net: Any, ids: Tensor, new: int) -> Tensor:
    """The likeliest tokens, by the whole forward."""
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, net(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


def test_the_family_bends_in_heads_width_and_depth(family: Elastic) -> None:
    assert {knob.kind for knob in family.space} == {"heads", "width", "depth"}
    assert all(config or name == "whole" for name, config in configs(family))


def test_greedy_tokens_are_those_of_the_whole_forward(net: nn.Module, family: Elastic) -> None:
    prompt = IDS[:, :5]
    wanted = plainly(net, prompt, 15)
    assert torch.equal(generate(net, prompt, max_new_tokens=15, temperature=0), wanted)
    assert torch.equal(generate(family, prompt, max_new_tokens=15, temperature=0), wanted)
    assert len({tuple(row) for row in wanted[:, 5:].tolist()}) > 1


def test_greedy_tokens_of_every_kind_of_sub_network(family: Elastic) -> None:
    prompt, found = IDS[:, :5], set()
    for name, config in configs(family):
        wanted = plainly(family.extract(config).eval(), prompt, 15)
        tokens = generate(family, prompt, max_new_tokens=15, config=config, temperature=0)
        assert torch.equal(tokens, wanted), name
        with family.using(config):
            assert torch.equal(generate(family, prompt, max_new_tokens=15, temperature=0), wanted), name
        found.add(tuple(wanted.flatten().tolist()))
    assert len(found) > 4  # the sub-networks do differ


def test_logits_of_steps_are_those_of_the_sub_network(family: Elastic) -> None:
    for name, config in configs(family):
        step = decoder(family, config)
        with torch.no_grad(), family.using(config):
            wanted = family(IDS)
            cache, got = step.empty_cache(3, 12), []
            for begin, end in ((0, 7), (7, 8), (8, 12)):
                logits, cache = step(IDS[:, begin:end], torch.tensor(begin), cache)
                got.append(logits)
        torch.testing.assert_close(torch.cat(got, dim=1), wanted, atol=1e-5, rtol=0, msg=name)


def test_a_step_is_really_smaller_and_keeps_the_names(net: nn.Module, family: Elastic) -> None:
    for name, config in configs(family):
        step, module = decoder(family, config), family.extract(config)
        own = {k: tuple(v.shape) for k, v in step.named_parameters(remove_duplicate=False)}
        theirs = {k: tuple(v.shape) for k, v in module.named_parameters(remove_duplicate=False)}
        assert theirs.items() <= own.items(), name
        assert own.keys() <= dict(net.named_parameters(remove_duplicate=False)).keys()
        heads = [config.get(f"heads:blocks.{i}.attn", 4) for i in range(3)]
        kept = [heads[i] for i in range(3) if config.get(f"depth:blocks.{i}.attn", True)]
        assert [k.shape[1] for k, _ in step.empty_cache(1)] == kept, name


def test_a_narrow_step_against_one_cut_by_hand(net: Any, family: Elastic) -> None:
    """Two of four heads in every block, and no second feed-forward part."""
    config = {f"heads:blocks.{i}.attn": 2 for i in range(3)} | {"depth:blocks.1.mlp": False}
    states = {}
    for name, tensor in net.state_dict().items():
        if name.startswith(("blocks.1.mlp", "blocks.1.norm2")):
            continue
        if ".qkv." in name:
            tensor = tensor.unflatten(0, (3, 4, 8))[:, :2].flatten(0, 2)
        if name.endswith("proj.weight"):
            tensor = tensor[:, :16]
        states[name] = tensor
    by_hand, ours = Decoder(states, head_dim=8), decoder(family, config)
    with torch.no_grad():
        wanted, wanted_cache = by_hand(IDS, torch.tensor(0), by_hand.empty_cache(3))
        logits, cache = ours(IDS, torch.tensor(0), ours.empty_cache(3))
    torch.testing.assert_close((logits, cache), (wanted, wanted_cache), atol=1e-5, rtol=0)


def test_a_step_that_is_traced_itself_bends_where_the_cache_lets_it(net: Any, family: Elastic) -> None:
    """Its cache comes from outside, so all heads stay; widths go by the family's names and give the family's parts."""
    whole = Decoder.of(net)
    cache = whole.empty_cache(3, 12)
    with torch.no_grad():
        _, cache = whole(IDS[:, :4], torch.tensor(0), cache)
    step = elastic(whole, (IDS[:, 4:5], torch.tensor([4, 4, 4]), cache), verbose=False)
    widths = {knob.name: knob.choices[0] for knob in step.space if knob.kind == "width"}
    assert not [knob for knob in step.space if knob.kind == "heads"]
    assert widths == {knob.name: knob.choices[0] for knob in family.space if knob.kind == "width"}
    config = widths | {"depth:blocks.1.mlp": False}
    narrow = decoder(family, config)
    with torch.no_grad(), step.using(config):
        one, two = cache, cache
        for place in range(4, 8):
            given = IDS[:, place : place + 1], torch.full((3,), place)
            (wanted, one), (logits, two) = narrow(*given, one), step(*given, two)
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_a_step_of_a_sub_network_runs_in_onnxruntime(family: Elastic) -> None:
    name, config = next((n, c) for n, c in configs(family) if n == "one block")
    step = decoder(family, {**config, "heads:blocks.0.attn": 2})
    with torch.no_grad():
        _, cache = step(IDS[:, :4], torch.tensor(0), step.empty_cache(3, 8))
    model = to_onnx(step, (IDS[:, 4:5], torch.tensor([4, 4, 3]), cache))
    assert model.errors["max_abs"] < 1e-4, name


def test_after_sorting_and_training_the_family_it_generates_with_the_new_weights() -> None:
    net = elastic(made(), IDS, verbose=False)
    config = {knob.name: knob.choices[0] for knob in net.space if knob.kind in ("heads", "width")}
    before = generate(net, IDS[:, :5], max_new_tokens=10, config=config, temperature=0)
    net.sort_units()
    after = generate(net, IDS[:, :5], max_new_tokens=10, config=config, temperature=0)
    assert torch.equal(after, plainly(net.extract(config), IDS[:, :5], 10))
    assert not torch.equal(before, after)


# -- networks without a cache ------------------------------------------------------------------------------------------


class Average(nn.Module):
    """A causal network of another kind: each place sees the mean of what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 16)
        self.hidden, self.head = nn.Linear(16, 24), nn.Linear(24, 11)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        x = self.tokens(input_ids)
        x = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return {"logits": self.head(torch.relu(self.hidden(x)))}


def test_other_networks_run_on_the_whole_sequence(family: Elastic) -> None:
    torch.manual_seed(0)
    net = Average()
    wanted = plainly(lambda ids: net(ids)["logits"], IDS[:, :5], 30)
    assert torch.equal(generate(net, IDS[:, :5], max_new_tokens=30, temperature=0), wanted)
    bending = elastic(net, IDS, verbose=False)
    config = {knob.name: knob.choices[0] for knob in bending.space}
    module = bending.extract(config)
    wanted = plainly(lambda ids: module(ids)["logits"], IDS[:, :5], 30)
    assert torch.equal(generate(bending, IDS[:, :5], max_new_tokens=30, config=config, temperature=0), wanted)
    with pytest.raises(PliantError, match="Average: it has no form with a cache"):
        decoder(bending)
    module = family.extract(family.space.smallest()).eval()
    wanted = generate(family, IDS[:, :5], max_new_tokens=9, config=family.space.smallest(), temperature=0)
    assert torch.equal(generate(module, IDS[:, :5], max_new_tokens=9, temperature=0), wanted)


def test_names_of_a_gpt_alone_are_not_believed() -> None:
    """A network with a gpt's names that computes something else must not get a gpt's cache."""
    net = made(depth=1)
    net.blocks[0].mlp.act = nn.ReLU()
    bending = elastic(net, IDS, verbose=False)
    with pytest.raises(PliantError, match="no form with a cache"):
        decoder(bending)
    wanted = plainly(net, IDS[:, :5], 12)
    assert torch.equal(generate(bending, IDS[:, :5], max_new_tokens=12, temperature=0), wanted)


def test_heads_that_lost_features_run_without_a_cache() -> None:
    bending = elastic(made(depth=1), IDS, choices={"head_dim:*": [0.5, 1.0]}, verbose=False)
    config = {knob.name: knob.choices[0] for knob in bending.space if knob.kind == "head_dim"}
    assert config
    wanted = plainly(bending.extract(config).eval(), IDS[:, :5], 12)
    assert torch.equal(generate(bending, IDS[:, :5], max_new_tokens=12, config=config, temperature=0), wanted)


# -- drawing -----------------------------------------------------------------------------------------------------------


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_draws_depend_on_the_generator_alone(net: nn.Module, family: Elastic) -> None:
    one = generate(net, IDS[:, :3], max_new_tokens=20, generator=seeded(1))
    assert torch.equal(one, generate(net, IDS[:, :3], max_new_tokens=20, generator=seeded(1)))
    assert torch.equal(one, generate(family, IDS[:, :3], max_new_tokens=20, generator=seeded(1)))
    assert not torch.equal(one, generate(net, IDS[:, :3], max_new_tokens=20, generator=seeded(2)))


def test_draws_follow_the_shares_of_temperature_and_top_k(net: nn.Module) -> None:
    with torch.no_grad():
        logits = net(IDS[:1, :3])[0, -1]
    rows = IDS[:1, :3].expand(4000, -1)
    drawn = generate(net, rows, max_new_tokens=1, temperature=3.0, generator=seeded(0))[:, -1]
    shares = torch.bincount(drawn, minlength=11) / 4000
    torch.testing.assert_close(shares, (logits / 3).softmax(-1), atol=0.03, rtol=0)
    drawn = generate(net, rows, max_new_tokens=1, temperature=3.0, top_k=2, generator=seeded(0))[:, -1]
    assert set(drawn.tolist()) == set(logits.topk(2).indices.tolist())
    drawn = generate(net, rows, max_new_tokens=1, top_k=1, generator=seeded(0))[:, -1]
    assert set(drawn.tolist()) == {int(logits.argmax())}


def test_rows_end_at_the_stop_token(net: nn.Module) -> None:
    free = generate(net, IDS[:, :5], max_new_tokens=19, temperature=0)
    stop = int(free[0, 8])
    ended = generate(net, IDS[:, :5], max_new_tokens=19, temperature=0, stop=stop)
    for row, whole in zip(ended.tolist(), free.tolist(), strict=True):
        new = whole[5:]
        end = new.index(stop) + 1 if stop in new else len(new)
        assert row[5 : 5 + end] == new[: len(row) - 5][:end]
        assert set(row[5 + end :]) <= {stop}
    alone = generate(net, IDS[:1, :5], max_new_tokens=19, temperature=0, stop=stop)
    assert alone[0].tolist() == free[0, : 5 + free[0, 5:].tolist().index(stop) + 1].tolist()


# -- borders -----------------------------------------------------------------------------------------------------------


def test_prompts_of_every_form(net: nn.Module) -> None:
    wanted = generate(net, IDS[:2, :4], max_new_tokens=3, temperature=0)
    assert torch.equal(generate(net, IDS[:2, :4].tolist(), max_new_tokens=3, temperature=0), wanted)
    assert torch.equal(generate(net, list(IDS[:2, :4]), max_new_tokens=3, temperature=0), wanted)
    assert torch.equal(generate(net, IDS[0, :4], max_new_tokens=3, temperature=0), wanted[:1])
    assert generate(net, [4], max_new_tokens=3).shape == (1, 4)


def test_the_mode_of_the_network_is_given_back(net: nn.Module) -> None:
    twin = made(dropout=0.5).train()
    assert torch.equal(
        generate(twin, IDS[:, :4], max_new_tokens=6, temperature=0),
        generate(twin.eval(), IDS[:, :4], max_new_tokens=6, temperature=0),
    )
    twin.train()
    generate(twin, IDS[:, :4], max_new_tokens=2)
    assert all(module.training for module in twin.modules())
    assert all(parameter.requires_grad for parameter in twin.parameters())


def test_the_whole_context_can_be_used_and_no_more(net: nn.Module, family: Elastic) -> None:
    assert torch.equal(generate(net, IDS, max_new_tokens=12, temperature=0), plainly(net, IDS, 12))
    for one in (net, family, family.extract({})):
        with pytest.raises(ValueError, match="12 tokens and 13 new ones do not fit the network's context of 24"):
            generate(one, IDS, max_new_tokens=13)


def test_arguments_outside_their_range_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="all rows of a prompt must have one length, got 2, 3"):
        generate(net, [[1, 2], [1, 2, 3]], max_new_tokens=1)
    for prompt, what in ((IDS.float(), r"float32 \[3, 12\]"), (IDS[None], r"\[1, 3, 12\]"), (IDS[:, :0], r"\[3, 0\]")):
        with pytest.raises(ValueError, match=f"a prompt is int64 .* got .*{what}"):
            generate(net, prompt, max_new_tokens=1)
    for new in (0, -1, True, 1.5):
        with pytest.raises(ValueError, match="max_new_tokens must be a whole number of at least 1"):
            generate(net, IDS, max_new_tokens=new)  # type: ignore[arg-type]
    for temperature in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be finite and not negative"):
            generate(net, IDS, max_new_tokens=1, temperature=temperature)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        generate(net, IDS, max_new_tokens=1, top_k=0)
    with pytest.raises(ValueError, match="sub-network of an elastic network, got GPT"):
        generate(net, IDS, max_new_tokens=1, config={})
    with pytest.raises(PliantError, match=r"Sequential: gives logits .* for tokens"):
        generate(nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(48, 11))[0:3], IDS, max_new_tokens=1)


def test_it_is_on_the_map() -> None:
    assert pliant.generate is generate_function
