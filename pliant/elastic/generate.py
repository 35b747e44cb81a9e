"""Generating text: the likeliest or a random next token, again and again, with the keys and values of earlier ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pliant.core import PliantError, call, main_output, map_tensors, tensors_of
from pliant.elastic.elastic import Elastic
from pliant.learn.modes import device_of, in_mode
from pliant.nets.decoder import Decoder
from pliant.nets.gpt import GPT

_CLOSE = 1e-4


@torch.no_grad()
def generate(
    net: nn.Module,
    prompt: Tensor | Sequence[Any],
    *,
    max_new_tokens: int,
    config: Any = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> Tensor:
    """Continue sequences of tokens.

    A `pliant.nets.gpt`, and every sub-network of an elastic one that differs in width, heads and depth, runs with a
    cache of keys and values (`decoder`): a step costs one token. Any other causal network (an extracted one, one of
    your own, an elastic one of another class) runs on the whole sequence in every step: the same tokens, more slowly.

    Args:
        net: takes tokens int64 [N, T] and gives logits [N, T, classes] (or an output that holds `logits`); its mode is
            given back as it was.
        prompt: int64 [N, T] or [T], or lists of such numbers; all rows have the same length, at least 1.
        max_new_tokens: how many tokens to add.
        config: which sub-network of an elastic network: a config, or anything with a `.config`; None for the active
            one.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: how many of the likeliest tokens to draw from; None for all.
        generator: of the draws; torch's own by default.
        stop: the token after which a row ends. What follows it in that row is `stop` again, and generation ends early
            where all rows have.

    Returns:
        The prompt and what follows, int64 [N, T + new], on the device of the prompt.

    Raises:
        ValueError: a prompt of another form or with rows of different lengths, more tokens than the network's context
            holds, `config` with a network that is not elastic, or another argument outside what is said above.
        PliantError: the network does not give logits for every token.
    """
    ids = _tokens(prompt)
    _check(max_new_tokens, temperature, top_k)
    total = ids.shape[1] + max_new_tokens
    with in_mode(net, False):
        reader = _reader(net, config, ids, total)
        written = ids.to(device_of(net))
        ended = torch.zeros(len(ids), dtype=torch.bool, device=written.device)
        for _ in range(max_new_tokens):
            new = _chosen(reader(written), temperature, top_k, generator)
            new = new if stop is None else torch.where(ended, stop, new)
            written = torch.cat([written, new[:, None]], dim=1)
            ended |= torch.zeros_like(ended) if stop is None else new == stop
            if stop is not None and bool(ended.all()):
                break
    return written.to(ids.device)


def decoder(net: nn.Module, config: Mapping[str, int | bool] | Any = None) -> Decoder:
    """A `gpt`, or a sub-network of an elastic one, in the form that takes new tokens and a cache.

    Args:
        net: a `pliant.nets.gpt`, whose parameters it shares, or an elastic one, from whose parameters it is cut out.
        config: which sub-network of an elastic network, by the knobs of that network; None for the active one. It may
            differ from the whole in width, heads and depth.

    Returns:
        A plain module, really smaller, with the parameter names of the `gpt`. Of a sub-network without some attention
        the cache has no keys and values for it either.

    Raises:
        ValueError: `config` with a network that is not elastic, or a config that the network does not have.
        PliantError: the network is no such one, or the sub-network differs from the whole in something else.
    """
    found = _decoder(net, _extracted(net, config))
    if found is None:
        raise PliantError(
            "it has no form with a cache of keys and values",
            where=getattr(net, "name", type(net).__name__),
            fix="give a pliant.nets.gpt or an elastic one, and leave knobs other than widths, heads and depths whole",
        )
    return found


def _extracted(net: nn.Module, config: Any) -> nn.Module:
    """A sub-network of an elastic network; any other network is itself."""
    if isinstance(net, Elastic):
        return net.extract(net.active if config is None else config).eval()
    if config is not None:
        raise ValueError(f"a config chooses a sub-network of an elastic network, got {type(net).__name__}")
    return net


def _decoder(net: nn.Module, module: nn.Module) -> Decoder | None:
    """The cached form of a network, of which `module` was taken out, if it has one that computes the same."""
    if isinstance(net, GPT):
        return Decoder.of(net)
    if not isinstance(net, Elastic):
        return None
    states = dict(module.named_parameters(remove_duplicate=False))
    try:
        found = Decoder(states, head_dim=_head_dim(net))
    except ValueError:  # parameters that are not those of a gpt
        return None
    return found if _agree(found, module, net.example) else None


def _head_dim(net: Elastic) -> int:
    """Features per head of the whole network, 1 where it has no attention like that of a `gpt`."""
    units = {group.name: group.units for group in net.graph.groups}
    for name, tensor in net.graph.states.items():
        if name.endswith(".attn.qkv.weight"):
            return max(len(tensor) // 3 // units.get(f"heads:{name.removesuffix('.qkv.weight')}", 1), 1)
    return 1


def _agree(found: Decoder, module: nn.Module, example: Any) -> bool:
    """Whether a decoder computes on the example what the network does: names alone do not prove it."""
    example = map_tensors(lambda tensor: tensor.to(device_of(module)), example)
    ids = tensors_of(example)[0]
    if ids.dim() != 2 or ids.is_floating_point() or ids.shape[1] > found.context:
        return False
    with torch.no_grad():
        wanted = main_output(call(module, example))
        logits, _ = found(ids, torch.zeros((), dtype=torch.int64, device=ids.device), found.empty_cache(*ids.shape))
    return logits.shape == wanted.shape and bool((logits - wanted).abs().max() <= _CLOSE * (1 + wanted.abs().max()))


class _Reader(Protocol):
    """All tokens so far, int64 [N, T] -> logits of the next one, [N, classes]."""

    def __call__(self, ids: Tensor) -> Tensor: ...


class _Cached:
    """Reads the tokens that it has not seen."""

    def __init__(self, net: Decoder, rows: int, slots: int) -> None:
        self.net, self.seen, self.cache = net, 0, net.empty_cache(rows, slots)

    def __call__(self, ids: Tensor) -> Tensor:
        position = torch.tensor(self.seen, device=ids.device)
        logits, self.cache = self.net(ids[:, self.seen :], position, self.cache)
        self.seen = ids.shape[1]
        return logits[:, -1]  # type: ignore[no-any-return]


class _Whole:
    """Reads all tokens anew."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, ids: Tensor) -> Tensor:
        logits = main_output(self.net(ids))
        if logits.dim() != 3 or logits.shape[:2] != ids.shape:
            problem = f"gives logits {list(logits.shape)} for tokens {list(ids.shape)}"
            raise PliantError(problem, where=type(self.net).__name__, fix="give logits [N, T, classes]")
        return logits[:, -1]


def _reader(net: nn.Module, config: Any, ids: Tensor, total: int) -> _Reader:
    module = _extracted(net, config)
    cached = _decoder(net, module)
    positions = dict(module.named_parameters()).get("positions.weight")
    context = getattr(net, "context", None) if positions is None else len(positions)
    if isinstance(context, int) and total > context:
        new = total - ids.shape[1]
        raise ValueError(f"{ids.shape[1]} tokens and {new} new ones do not fit the network's context of {context}")
    # The last token is written, never read.
    return _Whole(module) if cached is None else _Cached(cached, len(ids), max(total - 1, 1))


def _tokens(prompt: Tensor | Sequence[Any]) -> Tensor:
    if not isinstance(prompt, Tensor):
        rows = [row.tolist() if isinstance(row, Tensor) else row for row in prompt]
        lengths = sorted({len(row) for row in rows if isinstance(row, Sequence)})
        if len(lengths) > 1:
            raise ValueError(f"all rows of a prompt must have one length, got {', '.join(map(str, lengths))}")
        prompt = torch.tensor(rows)
    ids = prompt[None] if prompt.dim() == 1 else prompt
    if ids.dim() != 2 or ids.dtype != torch.int64 or not ids.numel():
        kind = f"{str(prompt.dtype).removeprefix('torch.')} {list(prompt.shape)}"
        raise ValueError(f"a prompt is int64 [N, T] or [T] with at least one token, got {kind}")
    return ids


def _check(max_new_tokens: int, temperature: float, top_k: int | None) -> None:
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")


def _chosen(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """One token for each row of logits [N, classes]."""
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.double() / temperature
    if top_k is not None and top_k < scaled.shape[1]:
        scaled = scaled.masked_fill(scaled < scaled.topk(top_k).values[:, -1:], -math.inf)
    shares = scaled.softmax(-1)
    drawn = torch.multinomial(shares if generator is None else shares.to(generator.device), 1, generator=generator)
    return drawn[:, 0].to(logits.device)
