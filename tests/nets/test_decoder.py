"""`gpt` step by step against `gpt` at once."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pliant import nets
from pliant.nets.decoder import Cache, Decoder


def gpt(**changes: Any) -> Any:
    torch.manual_seed(0)
    net = nets.gpt(**{"shape": (12,), "classes": 11, "dim": 16, "depth": 2, "heads": 4, **changes}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return net


IDS = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(0))


def at(place: Any) -> Tensor:
    return torch.as_tensor(place)


@torch.no_grad()
def stepped(net: Decoder, ids: Tensor, sizes: list[int], slots: int | None = None) -> tuple[Tensor, Cache]:
    cache, logits, place = net.empty_cache(len(ids), slots), [], 0
    for size in sizes:
        out, cache = net(ids[:, place : place + size], at(place), cache)
        logits.append(out)
        place += size
    return torch.cat(logits, dim=1), cache


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 1, 1, 3, 2]])
def test_steps_of_any_size_give_what_one_forward_gives(sizes: list[int], tied: bool) -> None:
    net = gpt(tied=tied)
    logits, _ = stepped(Decoder.of(net), IDS, sizes)
    with torch.no_grad():
        torch.testing.assert_close(logits, net(IDS), atol=1e-5, rtol=0)


def test_slots_that_are_not_used_change_nothing() -> None:
    net = Decoder.of(gpt())
    few, _ = stepped(net, IDS[:, :5], [3, 1, 1], slots=5)
    many, _ = stepped(net, IDS[:, :5], [3, 1, 1], slots=12)
    torch.testing.assert_close(few, many, atol=1e-6, rtol=0)


def test_rows_may_be_at_different_positions() -> None:
    net = gpt()
    step = Decoder.of(net)
    # The second row's prompt is shorter: what its first call wrote behind it is written over, or not seen.
    cache = step.empty_cache(2)
    with torch.no_grad():
        _, cache = step(IDS[:2, :5], at(0), cache)
        for i in range(4):
            places = torch.tensor([5 + i, 2 + i])
            new = torch.stack([IDS[0, 5 + i], IDS[1, 2 + i]])[:, None]
            logits, cache = step(new, places, cache)
            for row in range(2):
                whole = net(IDS[row : row + 1, : int(places[row]) + 1])[0, -1]
                torch.testing.assert_close(logits[row, 0], whole, atol=1e-5, rtol=0)


def test_parameters_are_those_of_the_network() -> None:
    net = gpt()
    step = Decoder.of(net)
    own, theirs = (dict(module.named_parameters(remove_duplicate=False)) for module in (step, net))
    assert own.keys() == theirs.keys()
    assert all(own[name] is theirs[name] for name in own)
    assert [(tuple(k.shape), tuple(v.shape)) for k, v in step.empty_cache(3, 7)] == [((3, 4, 7, 4), (3, 4, 7, 4))] * 2


def test_what_comes_in_stays_as_it_was() -> None:
    step = Decoder.of(gpt())
    cache = step.empty_cache(3)
    step(IDS[:, :4], at(0), cache)
    assert all(not tensor.any() for pair in cache for tensor in pair)


def test_it_is_one_graph_for_torch_export() -> None:
    step = Decoder.of(gpt())
    _, cache = stepped(step, IDS[:, :4], [4])
    given = (IDS[:, 4:5], torch.tensor([4, 4, 4]), cache)
    rows = torch.export.Dim("rows", min=2)
    shapes = ({0: rows}, {0: rows}, tuple(({0: rows}, {0: rows}) for _ in cache))
    program = torch.export.export(step, given, dynamic_shapes=shapes).module()
    two = (IDS[:2, 4:5], torch.tensor([4, 4]), tuple((k[:2], v[:2]) for k, v in cache))
    torch.testing.assert_close(program(*two), step(*two))


def test_errors_name_what_does_not_fit() -> None:
    net = gpt()
    step = Decoder.of(net)
    with pytest.raises(ValueError, match="the cache has 4 slots, 5 tokens do not fit"):
        step(IDS[:, :1], at(4), step.empty_cache(3, 4))
    with pytest.raises(ValueError, match="must have 2 pairs of keys and values, got 1"):
        step(IDS[:, :1], at(0), step.empty_cache(3)[:1])
    with pytest.raises(ValueError, match=r"slots in 1..12, got 3 and 13"):
        step.empty_cache(3, 13)
    with pytest.raises(TypeError, match=r"made of a pliant.nets.gpt, got Linear"):
        Decoder.of(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    states = dict(net.named_parameters())
    with pytest.raises(ValueError, match="48 rows, which are no heads of 5 features"):
        Decoder(states, head_dim=5)
    with pytest.raises(ValueError, match=r"blocks.1.norm2.weight is missing"):
        Decoder({name: p for name, p in states.items() if name != "blocks.1.norm2.weight"}, head_dim=4)
    with pytest.raises(ValueError, match=r"tokens.weight is missing"):
        Decoder({}, head_dim=4)
