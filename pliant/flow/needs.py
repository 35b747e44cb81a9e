"""What the states of a program need of each other, and values to try a block on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pliant.flow.explore import Arg, In, Leaf, Out, Scalar, State


def needed(states: Sequence[State], depends: Sequence[Sequence[set[int]]]) -> tuple[list[list[int]], list[list[int]]]:
    """The parameters and outputs that something needs: backwards over the program until nothing changes.

    Args:
        states: of the program.
        depends: per state and output the parameters it is made from.

    Returns:
        Per state its needed parameters, and per state its needed outputs, ascending. All inputs of the network count.
    """
    live: list[set[int]] = [set() for _ in states]
    made: list[set[int]] = [set() for _ in states]
    live[0] = set(range(len(states[0].params)))
    changed = True
    while changed:
        changed = False
        for number in reversed(range(len(states))):
            wanted = _wanted(states[number], live)
            outs = {arg.index for arg in wanted if isinstance(arg, Out)}
            ins = {arg.index for arg in wanted if isinstance(arg, In)} | live[number]
            ins = ins.union(*(depends[number][out] for out in outs))
            if (outs, ins) != (made[number], live[number]):
                made[number], live[number], changed = outs, ins, True
    return [sorted(each) for each in live], [sorted(each) for each in made]


def _wanted(state: State, live: list[set[int]]) -> list[Arg]:
    found: list[Arg] = [] if state.value is None else [state.value]
    for edge in state.edges:
        found += [arg for place, arg in enumerate(edge.args) if place in live[edge.target]]
    return found + returned(state.returns)


def returned(shape: Any) -> list[Arg]:
    """The values in a returned structure, depth first."""
    if isinstance(shape, Leaf | Scalar):
        return [shape.arg]
    if not isinstance(shape, Mapping):
        return []
    kind, inner = next(iter(shape.items()))
    items = inner.values() if kind == "dict" else inner if kind in ("list", "tuple") else ()
    return [arg for item in items for arg in returned(item)]


def samples_of(
    params: Sequence[tuple[torch.dtype, tuple[int, ...]]], generator: torch.Generator, scale: float = 1.0
) -> list[Tensor]:
    """Random tensors for a state's parameters; integers are 0 or 1, which every embedding has."""
    found = []
    for dtype, shape in params:
        if dtype.is_floating_point:
            found.append((torch.randn(shape, generator=generator) * scale).to(dtype))
        else:
            found.append(torch.randint(0, 2, shape, generator=generator).to(dtype))
    return found
