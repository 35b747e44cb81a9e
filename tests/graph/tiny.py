"""Tiny networks, each around one operator, and all that is asked of them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pliant.core import seeded
from pliant.elastic import Elastic
from pliant.testing import LAWS, Subject
from pliant.testing.subject import case_of
from tests.graph.spec import check_spec

TOLD = ("widest_equals_original", "sliced_equals_extracted", "permutation", "leave_one_axis_out", "cost_falls")


class Tiny(nn.Module):
    """`f(self, x)` with the parts as attributes: modules, parameters (tensors that want a gradient), buffers."""

    def __init__(self, f: Callable[[Any, Tensor], Any], parts: Mapping[str, nn.Module | Tensor]) -> None:
        super().__init__()
        self.f = f
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                setattr(self, name, part)
            elif part.requires_grad:
                self.register_parameter(name, nn.Parameter(part.detach().clone()))
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.f(self, x)


WHOLE = "keeps the size of"
"""How the reason begins of a call that has a rule, and on whose account parameters do not bend at all."""


@dataclass(frozen=True)
class Row:
    """One tiny network and what must be found in it.

    Args:
        name: of the test case.
        f: the forward.
        x: the example.
        groups: sorted (kind, units), read off by hand.
        parts: makes the parts.
        rigid: operators that must be reported.
        silent: axes that cannot be seen, with the reason.
        spans: names.
    """

    name: str
    f: Callable[[Any, Any], Any]
    x: Any
    groups: list[tuple[str, int]]
    parts: Callable[[], Mapping[str, Any]]
    rigid: tuple[str, ...] = ()
    silent: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[str, ...] = ()

    def subject(self) -> Subject:
        return Subject(self.name, self._make, lambda: self.x, silent=self.silent)

    def _make(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = Tiny(self.f, copy.deepcopy(dict(self.parts())))
            with torch.no_grad():  # nothing is constant: what is alike cannot be told apart
                for tensor in [*net.parameters(), *net.buffers()]:
                    if tensor.is_floating_point() and (tensor.dim() == 1 or bool((tensor == tensor.max()).all())):
                        tensor.add_(torch.rand(tensor.shape) * 0.3)
        return net


def inspect(row: Row) -> Elastic:
    """Everything that must hold of a row."""
    subject = row.subject()
    family = case_of(subject).family
    groups = sorted((g.kind, g.units) for g in family.graph.groups)
    assert groups == sorted(row.groups), family.graph.groups
    rigid = sorted({r.operator.split(".")[1] for r in family.graph.rigid if not r.reason.startswith(WHOLE)})
    assert rigid == sorted(row.rigid), family.graph.rigid
    spans = [name.removeprefix("depth:") for name in family.graph.span_names]
    assert spans == list(row.spans), spans
    assert family.dropped == ()
    for law in TOLD:
        LAWS[law](subject)
    generator = seeded(0, "spec")
    counts = family.graph.counts
    for _ in range(4):
        kept = {
            g: int(torch.randint(group.floor, group.units + 1, (), generator=generator))
            for g, group in enumerate(family.graph.groups)
        }
        check_spec(family.graph, counts(kept))
    check_spec(family.graph, counts({}))
    return family


def linear(a: int, b: int) -> nn.Linear:
    return nn.Linear(a, b)


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def floats(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(len(shape)))
