"""Causal language model over a small vocabulary, such as characters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant.nets import _checks as checks
from pliant.nets.transformer import Block


class GPT(nn.Module):
    """Token and learned position embeddings, causal pre-norm blocks, LayerNorm, Linear head.

    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners": the GPT-2 arrangement.

    Args:
        context: longest sequence in tokens.
        classes: size of the vocabulary.
        dim: features per token, a multiple of `heads`.
        depth: blocks.
        heads: attention heads.
        tied: whether the head shares its weight with the token embedding.
        dropout: of embeddings, attention weights and block outputs.
    """

    def __init__(
        self, context: int, classes: int, *, dim: int, depth: int, heads: int, tied: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(classes, dim)
        self.positions = nn.Embedding(context, dim)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=True, dropout=dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Int64 [N, T] with T <= context -> logits [N, T, classes]."""
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.drop(self.tokens(input_ids) + self.positions(position))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def gpt(
    shape: Sequence[int] = (64,),
    classes: int = 65,
    *,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    tied: bool = True,
    dropout: float = 0.0,
) -> GPT:
    """Causal transformer language model.

    Args:
        shape: (T,), the context length in tokens.
        classes: size of the vocabulary.
        dim: features per token, a multiple of `heads`.
        depth: blocks.
        heads: attention heads.
        tied: whether the head shares its weight with the token embedding.
        dropout: in [0, 1).

    Raises:
        ValueError: an argument outside the values above.
    """
    axes = checks.count_list("shape", shape)
    if len(axes) != 1:
        raise ValueError(f"shape must be (context length,) for a language model, got {axes}")
    checks.counts(classes=classes, dim=dim, depth=depth, heads=heads)
    checks.divides("heads", heads, "dim", dim)
    rate = checks.share("dropout", dropout)
    return GPT(axes[0], classes, dim=dim, depth=depth, heads=heads, tied=tied, dropout=rate)
