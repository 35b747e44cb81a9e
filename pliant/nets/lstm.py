"""Recurrent classifier of sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pliant.nets import _checks as checks


class LSTMClassifier(nn.Module):
    """Embedding (tokens) or raw features, `nn.LSTM`, last hidden state of the top layer, Linear.

    Args:
        features: features per step, or of an embedded token.
        classes: outputs.
        vocabulary: number of tokens; 0 means that steps are raw features.
        hidden: hidden features per direction.
        layers: stacked LSTM layers.
        bidirectional: whether to read backwards as well; the two last states are concatenated.
        dropout: between layers and before the head.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        vocabulary: int = 0,
        hidden: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, features) if vocabulary else nn.Identity()
        # nn.LSTM warns about a dropout that has no layer to follow.
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(features, hidden, layers, batch_first=True, dropout=between, bidirectional=bidirectional)
        self.bidirectional = bidirectional
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, T, features], or int64 [N, T] with a vocabulary -> logits [N, classes]."""
        _, (state, _) = self.lstm(self.embedding(x))
        last = torch.cat((state[-2], state[-1]), dim=1) if self.bidirectional else state[-1]
        logits: Tensor = self.fc(self.drop(last))
        return logits


def lstm(
    shape: Sequence[int] = (64, 8),
    classes: int = 10,
    *,
    vocabulary: int = 0,
    embedding: int = 32,
    hidden: int = 64,
    layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
) -> LSTMClassifier:
    """LSTM classifier of feature sequences or of token sequences.

    Args:
        shape: (T, features) for raw features, (T,) for tokens.
        classes: outputs.
        vocabulary: number of tokens; needed for shape (T,), 0 for raw features.
        embedding: features of an embedded token; unused for raw features.
        hidden: hidden features per direction.
        layers: stacked LSTM layers.
        bidirectional: whether to read backwards as well.
        dropout: in [0, 1).

    Raises:
        ValueError: an argument outside the values above.
    """
    axes = checks.count_list("shape", shape)
    checks.counts(classes=classes, embedding=embedding, hidden=hidden, layers=layers)
    if len(axes) not in (1, 2):
        raise ValueError(f"shape must be (T, features) or (T,) for a recurrent network, got {axes}")
    if len(axes) == 1:
        if vocabulary < 1:
            raise ValueError(f"shape {axes} means tokens: vocabulary must be at least 1, got {vocabulary!r}")
    elif vocabulary:
        raise ValueError(f"shape {axes} means raw features: vocabulary must be 0, got {vocabulary!r}")
    return LSTMClassifier(
        axes[1] if len(axes) == 2 else embedding,
        classes,
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        bidirectional=bidirectional,
        dropout=checks.share("dropout", dropout),
    )
