"""`gpt` one step at a time: keys and values of earlier tokens come in as tensors and go out as tensors."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.nets.gpt import GPT
from pliant.nets.transformer import FeedForward

Cache = tuple[tuple[Tensor, Tensor], ...]
"""For each attention, first block first, its keys and values: float [N, heads, slots, head_dim]."""


class CachedAttention(nn.Module):
    """`pliant.nets.transformer.Attention` over the slots of a cache; it has the same parameters under the same names.

    Args:
        dim: features per token.
        heads: heads, at most `dim // head_dim`.
        head_dim: features per head.
    """

    def __init__(self, dim: int, heads: int, *, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor, places: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Float [N, t, dim] at the places int64 [N, t] (or [1, t], the same in all rows) -> [N, t, dim], and the cache.

        The cache that goes out is the one that came in with the new keys and values in the slots `places`.
        """
        rows, count, _ = x.shape
        split = self.qkv(x).reshape(rows, count, 3, self.heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        slots = torch.arange(past[0].shape[2], device=x.device)
        order = slots - places[:, :1]  # which of the new tokens a slot is for
        fresh = ((order >= 0) & (order < count))[:, None, :, None]
        keys, values = (self._written(new, old, order, fresh) for new, old in zip((k, v), past, strict=True))
        seen = (slots <= places[:, :, None])[:, None]  # no token sees a later one, nor an empty slot
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(rows, count, -1))
        return projected, (keys, values)

    @staticmethod
    def _written(new: Tensor, old: Tensor, order: Tensor, fresh: Tensor) -> Tensor:
        # A choice, not a write in place: nothing that came in changes, and every exporter has it.
        count = new.shape[2]
        if count > 1:
            index = order.clamp(0, count - 1)[:, None, :, None].expand(*new.shape[:2], -1, new.shape[3])
            new = new.gather(2, index)
        return torch.where(fresh, new, old)


class CachedBlock(nn.Module):
    """`pliant.nets.transformer.Block` over a cache; either half may be missing, and is then skipped.

    Args:
        dim: features per token.
        heads: heads of the attention; 0 for a block without it.
        head_dim: features per head.
        hidden: features inside the feed-forward part; 0 for a block without it.
    """

    def __init__(self, dim: int, heads: int, *, head_dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim) if heads else None
        self.attn = CachedAttention(dim, heads, head_dim=head_dim) if heads else None
        self.norm2 = nn.LayerNorm(dim) if hidden else None
        self.mlp = FeedForward(dim, hidden) if hidden else None

    def forward(self, x: Tensor, places: Tensor, past: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Cache]:
        """Float [N, t, dim] -> the same shape, and the block's new cache; takes its part of `past` off its front."""
        new: Cache = ()
        if self.norm1 is not None and self.attn is not None:
            out, pair = self.attn(self.norm1(x), places, past.pop(0))
            x, new = x + out, (pair,)
        if self.norm2 is not None and self.mlp is not None:
            x = x + self.mlp(self.norm2(x))
        return x, new


class Decoder(nn.Module):
    """A `gpt` whose forward takes new tokens only, and a cache of the keys and values of those before them.

    It is for inference: dropout is left out. Its parameters are those it was given, under the names they have in `gpt`:
    training the one trains the other. The cache is a tuple with a pair (keys, values), float [N, heads, slots,
    head_dim], for every attention. Its number of slots is fixed when it is made (`empty_cache`), so that all shapes of
    a step stay the same: it can be traced, and exported by `pliant.export.to_onnx`.

    Args:
        states: parameters of a `gpt` by name, or of a narrower part of one: fewer features, heads or hidden features,
            blocks or halves of blocks missing. Of a head tied to the token embedding either name will do.
        head_dim: features per head.

    Attributes:
        context: the most tokens there can be, prompt included.
        heads: heads of each attention that there is.

    Raises:
        ValueError: a parameter is missing, or sizes do not fit together.
    """

    def __init__(self, states: Mapping[str, Tensor], *, head_dim: int) -> None:
        super().__init__()
        states = dict(states)
        for name, twin in (("tokens.weight", "head.weight"), ("head.weight", "tokens.weight")):
            if name not in states and twin in states:
                states[name] = states[twin]
        missing = [name for name in ("tokens.weight", "positions.weight") if name not in states]
        if missing:
            raise ValueError(f"a decoder needs the parameters of a gpt, {missing[0]} is missing")
        self.head_dim, self.context = head_dim, len(states["positions.weight"])
        self.heads: tuple[int, ...] = ()
        with torch.device("meta"):  # sizes only: the parameters are put in their places below
            dim = states["tokens.weight"].shape[1]
            self.tokens = nn.Embedding(len(states["tokens.weight"]), dim)
            self.positions = nn.Embedding(self.context, dim)
            numbers = {int(name.split(".")[1]) for name in states if name.startswith("blocks.")}
            self.blocks = nn.ModuleDict({str(i): self._block(states, f"blocks.{i}", dim) for i in sorted(numbers)})
            self.norm = nn.LayerNorm(dim)
            self.head = nn.Linear(dim, len(states["head.weight"]), bias=False)
        _adopt(self, states)
        self.eval()

    @classmethod
    def of(cls, net: GPT) -> "Decoder":
        """The decoder of a whole `gpt`, which shares its parameters.

        Raises:
            TypeError: `net` is no `gpt`.
        """
        if not isinstance(net, GPT):
            raise TypeError(f"a decoder is made of a pliant.nets.gpt, got {type(net).__name__}")
        first = next(module for module in net.modules() if hasattr(module, "head_dim"))
        return cls(dict(net.named_parameters(remove_duplicate=False)), head_dim=first.head_dim)  # type: ignore[arg-type]

    def _block(self, states: Mapping[str, Tensor], path: str, dim: int) -> CachedBlock:
        qkv, fc1 = states.get(f"{path}.attn.qkv.weight"), states.get(f"{path}.mlp.fc1.weight")
        rows = 0 if qkv is None else len(qkv)
        if rows % (3 * self.head_dim):
            raise ValueError(f"{path}.attn.qkv has {rows} rows, which are no heads of {self.head_dim} features")
        heads = rows // (3 * self.head_dim)
        self.heads += (heads,) if heads else ()
        return CachedBlock(dim, heads, head_dim=self.head_dim, hidden=0 if fc1 is None else len(fc1))

    def empty_cache(self, rows: int, slots: int | None = None) -> Cache:
        """A cache without any tokens.

        Args:
            rows: sequences.
            slots: the most tokens it will hold; `context` by default.

        Raises:
            ValueError: `rows` below 1, or `slots` outside 1..context.
        """
        slots = self.context if slots is None else slots
        if rows < 1 or not 1 <= slots <= self.context:
            raise ValueError(f"rows must be at least 1 and slots in 1..{self.context}, got {rows} and {slots}")
        like = self.tokens.weight

        def empty(heads: int) -> Tensor:
            return like.new_zeros(rows, heads, slots, self.head_dim).detach()

        return tuple((empty(heads), empty(heads)) for heads in self.heads)

    def forward(self, input_ids: Tensor, position: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Logits of new tokens, and the cache with them in it; the cache given stays as it was.

        Args:
            input_ids: int64 [N, t], the tokens after those in the cache.
            position: int64 [] or [N], how many tokens are in the cache (in each row).
            cache: what the last call gave out, or `empty_cache`.

        Returns:
            Logits [N, t, classes], and a cache of the same shapes.

        Raises:
            ValueError: a cache of another number of attentions, or (where values can be seen: not in a trace) one
                without slots for the new tokens.
        """
        if len(cache) != len(self.heads):
            raise ValueError(f"the cache must have {len(self.heads)} pairs of keys and values, got {len(cache)}")
        count = input_ids.shape[1]
        _check_room(position, count, cache)
        places = position.reshape(-1, 1) + torch.arange(count, device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(places)
        past, new = list(cache), []
        for block in self.blocks.values():
            x, pairs = block(x, places, past)
            new += pairs
        return self.head(self.norm(x)), tuple(new)


def _check_room(position: Tensor, count: int, cache: Sequence[tuple[Tensor, Tensor]]) -> None:
    if not cache or torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined, no-untyped-call]
        return
    slots, last = cache[0][0].shape[2], int(position.max()) + count
    if last > slots:
        raise ValueError(f"the cache has {slots} slots, {last} tokens do not fit: make it with more slots")


def _adopt(net: nn.Module, states: Mapping[str, Tensor]) -> None:
    """Put tensors in the places of a network's parameters: they are shared, not copied."""
    for path, module in net.named_modules():
        for leaf, old in module._parameters.items():
            name = f"{path}.{leaf}"
            if old is None:
                continue
            if name not in states:
                raise ValueError(f"a decoder needs the parameters of a gpt, {name} is missing")
            new = states[name]
            if new.shape != old.shape:
                raise ValueError(f"{name} must have the shape {list(old.shape)}, got {list(new.shape)}")
            module._parameters[leaf] = new if isinstance(new, nn.Parameter) else nn.Parameter(new, False)
