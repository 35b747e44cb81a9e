"""Multilayer perceptron."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pliant.nets import _checks as checks


class MLP(nn.Module):
    """Flatten, then Linear + activation (+ dropout) per hidden layer, then a Linear head.

    Args:
        in_features: features per sample after flattening.
        classes: outputs.
        hidden: width of each hidden layer; an empty list gives a linear model.
        activation: one of relu, relu6, hardswish, gelu, silu, tanh.
        dropout: probability of dropping a hidden feature.
    """

    def __init__(
        self, in_features: int, classes: int, *, hidden: Sequence[int], activation: str = "relu", dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(in_features, width), checks.activation(activation)]
            if dropout:
                layers.append(nn.Dropout(dropout))
            in_features = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(in_features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, ...] -> logits [N, classes]."""
        logits: Tensor = self.head(self.body(x.flatten(1)))
        return logits


def mlp(
    shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    hidden: Sequence[int] = (256, 256),
    activation: str = "relu",
    dropout: float = 0.0,
) -> MLP:
    """Multilayer perceptron for inputs of any per-sample shape.

    Args:
        shape: per-sample input shape; it is flattened.
        classes: outputs.
        hidden: width of each hidden layer; an empty list gives a linear model.
        activation: one of relu, relu6, hardswish, gelu, silu, tanh.
        dropout: in [0, 1).

    Raises:
        ValueError: an argument outside the values above.
    """
    checks.counts(classes=classes)
    checks.one_of("activation", activation, list(checks.ACTIVATIONS))
    widths = checks.count_list("hidden", hidden) if len(hidden) else ()
    features = math.prod(checks.count_list("shape", shape))
    return MLP(features, classes, hidden=widths, activation=activation, dropout=checks.share("dropout", dropout))
