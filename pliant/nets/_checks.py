"""Argument checks shared by the factories: one-line errors that name the value got and the values allowed."""

from collections.abc import Callable, Sequence

from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "gelu": lambda: nn.GELU(),
    "silu": lambda: nn.SiLU(inplace=True),
    "tanh": lambda: nn.Tanh(),
}
"""Activation name -> a fresh module."""


def counts(**values: int) -> None:
    """Raises `ValueError` unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def count_list(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """`values` as a tuple; raises `ValueError` unless it is a non-empty list of whole numbers of at least 1."""
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{name} must be a non-empty list of whole numbers, got {values!r}")
    for index, value in enumerate(values):
        counts(**{f"{name}[{index}]": value})
    return tuple(values)


def share(name: str, value: float) -> float:
    """`value`; raises `ValueError` unless 0 <= value < 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
    return float(value)


def image(shape: Sequence[int]) -> tuple[int, int, int]:
    """Channels, height and width; raises `ValueError` for any other kind of shape."""
    axes = count_list("shape", shape)
    if len(axes) != 3:
        raise ValueError(f"shape must be (channels, height, width) for an image network, got {axes}")
    return axes[0], axes[1], axes[2]


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """`value`; raises `ValueError` listing the choices when it is none of them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def activation(name: str) -> nn.Module:
    """A fresh activation module; raises `ValueError` listing the choices for an unknown name."""
    return ACTIVATIONS[one_of("activation", name, list(ACTIVATIONS))]()


def divides(name: str, part: int, whole_name: str, whole: int) -> None:
    """Raises `ValueError` unless `whole` is a multiple of `part`."""
    if whole % part:
        raise ValueError(f"{name} must divide {whole_name}, got {name}={part} and {whole_name}={whole}")
