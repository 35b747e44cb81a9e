"""Values, steps and places: what the rules of one-pass networks read and write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from pliant.core import PliantError
from pliant.graph.ir import Node, Ref, argument, refs
from pliant.graph.labels import IntArray


@dataclass(frozen=True)
class Value:
    """What is known of a value.

    Args:
        shape: of the example's.
        axes: axis to the shell (1 to S) of each index. A weight that is read along one axis and makes another has two.
        each: whether there is one for each width.
        active: whether it depends on the network's inputs.
        pooled: whether its positions were averaged; `squeezed`: and its shells combined after that.
        origin: of weights, the state and the order of its axes.
    """

    shape: tuple[int, ...]
    axes: Mapping[int, IntArray] = field(default_factory=dict)
    each: bool = False
    active: bool = True
    pooled: bool = False
    squeezed: bool = False
    origin: tuple[str, tuple[int, ...]] | None = None

    @property
    def whole(self) -> bool:
        """Whether it is a weight that is cut only where it is used."""
        return not self.active and len(self.axes) > 1


@dataclass(frozen=True)
class Step:
    """A call that is run as it is: once, on the shells that are wanted, or (`each`) once for each width."""

    node: Node
    each: bool = False
    shelled: bool = False


@dataclass(frozen=True)
class Linear(Step):
    """A linear operator that reads shells.

    Args:
        x, weight, bias: names of the values; of states for a `Head`.
        axis: of the input, along which it is read.
        layout: output and input axis of the weight.
        into: shells of the inputs.
    """

    x: str = ""
    weight: str = ""
    bias: str | None = None
    axis: int = 0
    layout: tuple[int, int] = (0, 1)
    into: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Mix(Linear):
    """A block-triangular linear operator: outputs of shell j (in `out_of`) read inputs of shells 1 to j."""

    out_of: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Head(Linear):
    """A linear operator that reads shells and gives out none."""


@dataclass(frozen=True)
class Norm(Step):
    """A layer or RMS normalisation over shells; `centred` where the mean is taken off, `even` where shells are of one
    size, one after the other."""

    x: str = ""
    weight: str | None = None
    bias: str | None = None
    eps: float | None = None
    centred: bool = True
    even: bool = False
    into: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Join(Step):
    """A concatenation; `later` are the parts that shells after the first have entries in."""

    later: tuple[int, ...] = ()


class Place:
    """One call with what is known of its operands, for a rule to judge.

    Args:
        node: the call.
        values: what is known of every value so far.
        results: gives the results of a call with the shells that the graph's labels give them.
        mixed: whether an axis of a node's value holds units and other indices too.
    """

    def __init__(self, node: Node, values: Mapping[str, Value], results: Callable[[Node], list[Value]],
                 mixed: Callable[[str, int], bool]) -> None:  # fmt: skip
        self.node, self.values, self._results, self._mixed = node, values, results, mixed
        self.operands = [values[ref.name] for ref in refs((node.args, node.kwargs)) if ref.name in values]

    def ref(self, name: str) -> str | None:
        """The name of the value given for an argument, if it is one."""
        found = argument(self.node, name)
        return found.name if isinstance(found, Ref) and found.name in self.values else None

    def value(self, name: str) -> Value | None:
        """What is known of an argument, if it is a value."""
        found = self.ref(name)
        return None if found is None else self.values[found]

    def results(self) -> list[Value]:
        """The call's results with the shells that the graph's labels give them."""
        return self._results(self.node)

    def mixed(self, axis: int) -> bool:
        """Whether an axis of the result holds units and other indices too."""
        return self._mixed(self.node.name, axis)

    def refuse(self, problem: str, fix: str) -> NoReturn:
        """Say why the network cannot be one pass."""
        raise PliantError(problem, where=self.node.place, fix=fix)

    def refuse_squeeze(self) -> NoReturn:
        """The reason by its name."""
        self.refuse("squeeze-excite: it scales channels by gates that are computed from all channels",
                    "build the network without squeeze-excite")  # fmt: skip
