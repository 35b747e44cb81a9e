"""Entries of the zoo, and the short forms in which its rows are written.

A file of networks holds a list `ENTRIES`, made by `entry`; `zoo` joins the lists.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pliant.core import Inputs, call, seeded
from pliant.elastic import Elastic

Make = Callable[[], nn.Module]
Draw = Callable[[torch.Generator], Inputs]
Groups = Mapping[str, Sequence[int]]
"""What a person who knows an architecture expects: kind -> units of every group of that kind, in rising order; under
"depth" the number of spans that can be left out, as the only item."""


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    Args:
        name: what test cases call it.
        build: makes the network under the global random state.
        inputs: makes the example input from a generator.
        tags: what is in it (conv, batchnorm, groupnorm, layernorm, attention, rnn, cat, tokens, tied, hf, ...); "core"
            marks the few on which the fast tests run every law.
        groups: the groups of tied axes that must be found, written down from the architecture's definition with the
            knobs that `elastic` offers by itself; None where not stated.
        silent: axes that provably cannot be seen in the output, as "state[axis]" to the reason.
        family: the Hugging Face family (`model_type`) where it is one.
        training: whether `make` gives it in training mode; false where training decides by values, so that only its
            evaluation is a graph.
    """

    name: str
    build: Make
    inputs: Draw
    tags: frozenset[str]
    groups: Groups | None = field(default=None, compare=False)
    silent: Mapping[str, str] = field(default_factory=dict, compare=False)
    family: str | None = None
    training: bool = True

    def make(self) -> nn.Module:
        """The network, always with the same weights; the global random state is left alone.

        Constant initial values (biases, norm scales, running statistics) are replaced by random ones: with all entries
        equal, no test would see which of them is used where. The large ones, those of Hugging Face, then take their
        batch statistics from the example.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = self.build()
            stir(net, seeded(0, "zoo", self.name))
            if self.family is not None:
                _calibrate(net, self.example())
        return net.train(self.training)

    def example(self) -> Inputs:
        """The example input, batch of 2, always the same."""
        return self.inputs(seeded(0, "zoo example", self.name))


def entry(name: str, build: Make, inputs: Draw, tags: str, *, groups: Groups | None = None,
          silent: Mapping[str, str] | None = None, family: str | None = None) -> Entry:  # fmt: skip
    """A row of the zoo; `tags` are words with blanks between them, "evaluation" among them for `training=False`."""
    words = frozenset(tags.split())
    return Entry(name, build, inputs, words, groups, silent or {}, family, "evaluation" not in words)


def found_groups(family: Elastic) -> dict[str, list[int]]:
    """What bends of a network, in the form of `Groups`."""
    found: dict[str, list[int]] = {}
    for number, group in enumerate(family.graph.groups):
        if number not in family.dropped:
            found.setdefault(group.kind, []).append(group.units)
    spans = len(family.graph.span_names)
    return {kind: sorted(units) for kind, units in found.items()} | ({"depth": [spans]} if spans else {})


def stir(net: nn.Module, generator: torch.Generator) -> None:
    """Add noise, in place, to parameters that repeat themselves along an axis and to buffers that are constant."""
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if not tensor.is_floating_point() or tensor.numel() < 2 or not _repeats(tensor):
                continue
            if name.endswith("running_var"):
                tensor.add_(torch.rand(tensor.shape, generator=generator) - 0.5)
            else:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)


def _calibrate(net: nn.Module, example: Inputs) -> None:
    """Batch statistics of the example: far from them little of an image would reach the end of a deep network."""
    norms = [module for module in net.modules() if getattr(module, "running_var", None) is not None]
    norms = [module for module in norms if hasattr(module, "momentum")]
    before = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 1.0  # type: ignore[assignment]
    if norms:
        with torch.no_grad():
            call(net.train(), example)
    for module, momentum in zip(norms, before, strict=True):
        module.momentum = momentum
        module.running_var.clamp_(min=1e-4)  # type: ignore[operator]


def _repeats(tensor: Tensor) -> bool:
    """Whether its units cannot be told apart: all entries alike, or in a parameter all entries along some axis."""
    if not isinstance(tensor, nn.Parameter):
        return bool((tensor == tensor.flatten()[0]).all())
    return any(n > 1 and bool((tensor == tensor.narrow(axis, 0, 1)).all()) for axis, n in enumerate(tensor.shape))


def floats(*shape: int) -> Draw:
    """Normal numbers [2, *shape]."""
    return lambda generator: torch.randn(2, *shape, generator=generator)


def tokens(length: int, vocabulary: int) -> Draw:
    """Int64 [2, length] below `vocabulary`."""
    return lambda generator: torch.randint(vocabulary, (2, length), generator=generator)


def named(**draws: Draw) -> Draw:
    """A dict of inputs, each drawn in turn."""
    return lambda generator: {name: draw(generator) for name, draw in draws.items()}


def constant(value: Tensor) -> Draw:
    """Always the same tensor (axis 0 is the batch of 2): an attention mask, say."""
    return lambda generator: value.clone()


def draws(*parts: Draw | tuple[int, ...]) -> Draw:
    """A tuple of inputs, each drawn in turn; a shape stands for `floats` of it."""
    made = [floats(*part) if isinstance(part, tuple) else part for part in parts]
    return lambda generator: tuple(part(generator) for part in made)
