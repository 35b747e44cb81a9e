"""Hand-written attention networks of the zoo, tiny, each with the structure of its family."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pliant.testing.entry import Entry, draws, entry, floats, tokens


class MLP(nn.Module):
    """Two linear maps with GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Self-attention from one projection, written out: softmax(q k' / sqrt(d) + bias) v."""

    def __init__(self, dim: int, heads: int, *, positions: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.randn(heads, positions, positions)) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, dim] -> the same."""
        n, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5
        if self.bias is not None:
            scores = scores + self.bias
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, dim)
        mixed: Tensor = self.proj(out)
        return mixed


def windows(x: Tensor, size: int) -> Tensor:
    """[N, H, W, C] -> [N * windows, size * size, C]."""
    n, height, width, channels = x.shape
    x = x.view(n, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


def unwindows(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """The inverse of `windows`."""
    x = x.view(-1, height // size, width // size, size, size, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


class SwinBlock(nn.Module):
    """Attention within windows that may be shifted by half a window, with a bias for each pair of positions."""

    def __init__(self, dim: int, heads: int, *, size: int, shift: int) -> None:
        super().__init__()
        self.size, self.shift = size, shift
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, positions=size * size)
        self.norm2, self.mlp = nn.LayerNorm(dim), MLP(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> the same."""
        height, width = x.shape[1:3]
        out = self.norm1(x)
        if self.shift:
            out = torch.roll(out, (-self.shift, -self.shift), (1, 2))
        out = unwindows(self.attn(windows(out, self.size)), self.size, height, width)
        if self.shift:
            out = torch.roll(out, (self.shift, self.shift), (1, 2))
        x = x + out
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class Swin(nn.Module):
    """Shifted windows and patch merging (Swin Transformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, 2)
        self.stage1 = nn.Sequential(SwinBlock(16, 2, size=2, shift=0), SwinBlock(16, 2, size=2, shift=1))
        self.merge_norm, self.merge = nn.LayerNorm(64), nn.Linear(64, 32, bias=False)
        self.stage2 = nn.Sequential(SwinBlock(32, 4, size=2, shift=0), SwinBlock(32, 4, size=2, shift=1))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, 5]."""
        x = self.stage1(self.embed(x).permute(0, 2, 3, 1))
        corners = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        x = self.stage2(self.merge(self.merge_norm(torch.cat(corners, -1))))
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


class PoolingAttention(nn.Module):
    """Queries, keys and values pooled by depthwise convolutions before attention (MViT)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, each = heads, dim // heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.pools = nn.ModuleList([nn.Conv2d(each, each, 3, stride, 1, groups=each) for stride in (1, 2, 2)])
        self.norms = nn.ModuleList([nn.LayerNorm(each) for _ in range(3)])

    def _pooled(self, x: Tensor, i: int, side: int) -> Tensor:
        n, heads, length, each = x.shape
        image = x.reshape(n * heads, length, each).transpose(1, 2).reshape(n * heads, each, side, side)
        image = self.pools[i](image)
        out: Tensor = self.norms[i](image.reshape(n, heads, each, -1).transpose(2, 3))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, dim] -> the same."""
        n, length, dim = x.shape
        parts = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = (self._pooled(part, i, math.isqrt(length)) for i, part in enumerate(parts))
        out = F.scaled_dot_product_attention(q, k, v) + q
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(n, length, dim))
        return mixed


class MViT(nn.Module):
    """Pooling attention with a residual on the queries (MViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Conv2d(3, 24, 2, 2), nn.Parameter(torch.randn(1, 16, 24))
        self.norm1, self.attn = nn.LayerNorm(24), PoolingAttention(24, 4)
        self.norm2, self.mlp = nn.LayerNorm(24), MLP(24, 32)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, 5]."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        logits: Tensor = self.head(x.mean(1))
        return logits


class MaxViT(nn.Module):
    """An inverted bottleneck, attention within blocks, attention over a grid (MaxViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.expand, self.depth = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm, self.project = nn.BatchNorm2d(32), nn.Conv2d(32, 16, 1)
        self.block, self.grid = SwinBlock(16, 4, size=2, shift=0), SwinBlock(16, 4, size=2, shift=0)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 8, 8] -> [N, 5]."""
        x = self.stem(x)
        x = x + self.project(F.gelu(self.norm(self.depth(F.gelu(self.expand(x))))))
        x = self.block(x.permute(0, 2, 3, 1))
        n, height, width, channels = x.shape
        strided = x.view(n, 2, height // 2, 2, width // 2, channels).permute(0, 2, 1, 4, 3, 5)
        x = self.grid(strided.reshape(n, height, width, channels))
        logits: Tensor = self.head(x.mean((1, 2)))
        return logits


class Cross(nn.Module):
    """Attention of one sequence to another, from four projections."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.o = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, memory: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, L, dim], [N, S, dim] -> [N, L, dim]."""
        n, length, _ = x.shape
        q, k, v = (
            project(source).view(n, -1, self.heads, source.shape[-1] // self.heads).transpose(1, 2)
            for project, source in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        scores = torch.matmul(q, k.transpose(3, 2))
        scores = scores if bias is None else scores + bias
        out = torch.matmul(F.softmax(scores.float(), dim=-1), v).transpose(1, 2).reshape(n, length, -1)
        mixed: Tensor = self.o(out)
        return mixed


class RMSNorm(nn.Module):
    """Scale by the root of the mean square."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class EncoderDecoder(nn.Module):
    """Relative position bias shared over layers, gated feed-forward, tied embedding (T5)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.relative = nn.Embedding(20, 24), nn.Embedding(9, 4)
        self.enc, self.dec, self.cross = Cross(24, 4), Cross(24, 4), Cross(24, 4)
        self.norms = nn.ModuleList([RMSNorm(24) for _ in range(6)])
        self.gate = nn.ModuleList([nn.Linear(24, 32, bias=False) for _ in range(2)])
        self.up = nn.ModuleList([nn.Linear(24, 32, bias=False) for _ in range(2)])
        self.down = nn.ModuleList([nn.Linear(32, 24, bias=False) for _ in range(2)])

    def _bias(self, length: int) -> Tensor:
        place = torch.arange(length)
        bias: Tensor = self.relative((place[None] - place[:, None]).clamp(-4, 4) + 4)
        return bias.permute(2, 0, 1).unsqueeze(0)

    def _feed(self, x: Tensor, i: int) -> Tensor:
        out: Tensor = self.down[i](F.gelu(self.gate[i](x), approximate="tanh") * self.up[i](x))
        return out

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Tokens [N, S] and [N, L] -> logits [N, L, 20]."""
        x, y = self.embed(source), self.embed(target)
        normed = self.norms[0](x)
        x = x + self.enc(normed, normed, self._bias(source.shape[1]))
        x = x + self._feed(self.norms[1](x), 0)
        normed = self.norms[2](y)
        causal = torch.full((target.shape[1], target.shape[1]), float("-inf")).triu(1)
        y = y + self.dec(normed, normed, self._bias(target.shape[1]) + causal)
        y = y + self.cross(self.norms[3](y), x)
        y = y + self._feed(self.norms[4](y), 1)
        return F.linear(self.norms[5](y) * 24**-0.5, self.embed.weight)


class DETR(nn.Module):
    """A convolutional backbone, an encoder, learnt queries in a decoder, two heads (DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.project = nn.Conv2d(12, 16, 1)
        self.rows, self.columns = nn.Parameter(torch.rand(4, 8)), nn.Parameter(torch.rand(4, 8))
        self.queries = nn.Embedding(6, 16)
        options = {"batch_first": True, "dropout": 0.0}
        self.encoder = nn.TransformerEncoderLayer(16, 4, 32, **options)  # type: ignore[arg-type]
        self.decoder = nn.TransformerDecoderLayer(16, 4, 32, **options)  # type: ignore[arg-type]
        self.classes = nn.Linear(16, 5)
        self.boxes = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[N, 3, 8, 8] -> scores [N, 6, 5], boxes [N, 6, 4]."""
        features = self.project(self.backbone(x))
        height, width = features.shape[-2:]
        place = torch.cat([
            self.columns[:width].unsqueeze(0).repeat(height, 1, 1),
            self.rows[:height].unsqueeze(1).repeat(1, width, 1),
        ], dim=-1).flatten(0, 1)  # fmt: skip
        memory = self.encoder(features.flatten(2).transpose(1, 2) + place)
        out = self.decoder(self.queries.weight.unsqueeze(0).expand(x.shape[0], -1, -1), memory)
        return {"scores": self.classes(out), "boxes": self.boxes(out).sigmoid()}


class Speech(nn.Module):
    """Convolutions over the wave with GroupNorm and LayerNorm, a convolutional position, post-norm layers (wav2vec)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(1, 12, 8, 4, bias=False), nn.GroupNorm(12, 12)
        self.conv2, self.norm2 = nn.Conv1d(12, 12, 4, 2, bias=False), nn.LayerNorm(12)
        self.project = nn.Linear(12, 24)
        position = nn.Conv1d(24, 24, 4, padding=2, groups=6)
        self.position = nn.utils.parametrizations.weight_norm(position, dim=2)
        self.attn, self.norm3 = Attention(24, 4), nn.LayerNorm(24)
        self.mlp, self.norm4 = MLP(24, 32), nn.LayerNorm(24)
        self.head = nn.Linear(24, 20)

    def forward(self, wave: Tensor) -> Tensor:
        """[N, 100] -> [N, frames, 20]."""
        x = F.gelu(self.norm1(self.conv1(wave.unsqueeze(1))))
        x = self.project(self.norm2(F.gelu(self.conv2(x)).transpose(1, 2)))
        x = x + F.gelu(self.position(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        x = self.norm3(x + self.attn(x))
        x = self.norm4(x + self.mlp(x))
        return F.log_softmax(self.head(x), dim=-1)


class Perceiver(nn.Module):
    """Learnt latents attend to the input, then to themselves with shared weights (Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.embed = nn.Parameter(torch.randn(4, 24)), nn.Linear(6, 24)
        self.read, self.norm = Cross(24, 4), nn.LayerNorm(24)
        self.block = PreNorm(24, 4)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 6] -> [N, 5]."""
        latents = self.latents.expand(x.shape[0], -1, -1)
        latents = latents + self.read(self.norm(latents), self.embed(x))
        latents = self.block(self.block(latents))
        logits: Tensor = self.head(latents.mean(1))
        return logits


class PreNorm(nn.Module):
    """A pre-norm block of attention and two-layer network."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), MLP(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, dim] -> the same."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class GatedMLP(nn.Module):
    """Half of the hidden units gate the other half through a linear map over positions (gMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(20, 16), nn.LayerNorm(16)
        self.up, self.spatial_norm = nn.Linear(16, 48), nn.LayerNorm(24)
        self.spatial, self.down = nn.Conv1d(7, 7, 1), nn.Linear(24, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, 7] -> [N, 5]."""
        x = self.embed(tokens)
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, dim=-1)
        x = x + self.down(u * self.spatial(self.spatial_norm(v)))
        logits: Tensor = self.head(x.mean(1))
        return logits


class MixtureOfExperts(nn.Module):
    """Experts as stacked weights, a gate that keeps the best two (Mixtral in dense form)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.gate = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 4, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 24) * 0.2), nn.Parameter(torch.randn(4, 24, 16) * 0.2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 6] -> [N, L, 5]."""
        x = self.embed(x)
        normed = self.norm(x)
        scores = self.gate(normed).softmax(-1)
        best, chosen = torch.topk(scores, 2, dim=-1)
        weight = torch.zeros_like(scores).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        hidden = F.silu(torch.einsum("nld,edh->nleh", normed, self.up))
        out = torch.einsum("nleh,ehd,nle->nld", hidden, self.down, weight)
        logits: Tensor = self.head(x + out)
        return logits


ENTRIES: list[Entry] = [
    # two stages of two blocks; the merged patches are four times the first stream
    entry("swin", Swin, floats(3, 8, 8), "conv attention layernorm cat windows depth",
          groups={"heads": [2, 2, 4, 4], "width": [16, 32, 32, 32, 64, 64], "depth": [8]}),
    # attention, its addition to the pooled queries, and the two-layer network
    entry("mvit", MViT, floats(3, 8, 8), "conv attention layernorm pooling depth",
          groups={"heads": [4], "width": [24, 32], "depth": [3]}),
    entry("maxvit", MaxViT, floats(3, 8, 8), "conv attention layernorm batchnorm windows depth",
          groups={"heads": [4, 4], "width": [16, 32, 32, 32], "depth": [5]}),
    # encoder and decoder share the relative bias, so their heads are one group
    entry("encdec", EncoderDecoder, draws(tokens(7, 20), tokens(5, 20)), "attention rmsnorm tokens tied depth",
          groups={"heads": [4, 4], "width": [24, 32, 32], "depth": [5]}),
    # the memory's stream is half columns, half rows of the learnt position; keys and queries of the attention to it
    # share the columns of one packed weight, so the decoder's stream is the same
    entry("detr", DETR, floats(3, 8, 8), "conv attention batchnorm layernorm detection depth",
          groups={"heads": [4, 4, 4], "width": [8, 8, 12, 24, 32, 32], "depth": [5]}),
    # the position's convolution ties four channels of the stream to one of six groups
    entry("speech", Speech, floats(100), "conv grouped attention groupnorm layernorm weightnorm depth",
          groups={"heads": [4], "width": [6, 12, 12, 32], "depth": [3]}),
    # four latents, the stream, the input's width; each use of the shared block has two branches
    entry("perceiver", Perceiver, floats(7, 6), "attention layernorm shared depth",
          groups={"heads": [4, 4], "width": [4, 24, 24, 48], "depth": [5]}),
    # positions are mixed by weights, so they stay
    entry("gmlp", GatedMLP, tokens(7, 20), "layernorm gated tokens depth", groups={"width": [16, 24], "depth": [1]}),
    entry("moe", MixtureOfExperts, floats(7, 6), "experts layernorm einsum depth",
          groups={"experts": [4], "width": [16, 24], "depth": [1]}),
]  # fmt: skip
