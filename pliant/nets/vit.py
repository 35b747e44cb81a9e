"""Vision transformer for small images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant.nets import _checks as checks
from pliant.nets.transformer import Block

POOLS = ("token", "mean")


class ViT(nn.Module):
    """Patch embedding, learned positions, pre-norm blocks, class token or mean pooling, Linear.

    Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale"
    <https://arxiv.org/abs/2010.11929>; the head is one Linear layer.

    Args:
        shape: (channels, height, width) of one image, both sides multiples of `patch`.
        classes: outputs.
        patch: side of a square patch in pixels.
        dim: features per token, a multiple of `heads`.
        depth: blocks.
        heads: attention heads.
        pool: "token" reads a class token, "mean" the mean over the patches.
        dropout: of embeddings, attention weights and block outputs.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        pool: str = "token",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        tokens = (height // patch) * (width // patch)
        self.patch_embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "token" else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + (pool == "token"), dim))
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.blocks = nn.Sequential(*(Block(dim, heads, dropout=dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] -> logits [N, classes]."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = self.norm(self.blocks(self.drop(x + self.pos_embed)))
        x = x[:, 0] if self.cls_token is not None else x.mean(dim=1)
        logits: Tensor = self.head(x)
        return logits


def vit(
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    pool: str = "token",
    dropout: float = 0.0,
) -> ViT:
    """Vision transformer.

    Args:
        shape: (channels, height, width) of one image, both sides multiples of `patch`.
        classes: outputs.
        patch: side of a square patch in pixels.
        dim: features per token, a multiple of `heads`.
        depth: blocks.
        heads: attention heads.
        pool: "token" (class token) or "mean" (mean over the patches).
        dropout: in [0, 1).

    Raises:
        ValueError: an argument outside the values above.
    """
    channels, height, width = checks.image(shape)
    checks.counts(classes=classes, patch=patch, dim=dim, depth=depth, heads=heads)
    checks.one_of("pool", pool, POOLS)
    checks.divides("patch", patch, "height", height)
    checks.divides("patch", patch, "width", width)
    checks.divides("heads", heads, "dim", dim)
    return ViT(
        (channels, height, width),
        classes,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        pool=pool,
        dropout=checks.share("dropout", dropout),
    )
