"""Which operators of the zoo have no rule: none but those named here."""

from collections.abc import Iterator

import pytest

from pliant.graph import trace
from pliant.graph.ir import Node
from pliant.graph.rules import find_rule
from pliant.testing.zoo import ZOO

JUSTIFIED = dict.fromkeys(
    ("aten.eye", "aten.linspace"), "made of numbers alone: it has no units, and what meets it stays whole"
)
"""Operator to the reason why it needs no rule."""

PLAIN = ("operator.", "torch.", "module.", "pliant.", "aten.sym_")
"""Numbers, sub-modules that run as they are, and what picks between the two modes."""


def _without_rule(name: str) -> Iterator[Node]:
    entry = ZOO[name]
    for node in trace(entry.make(), entry.example()).program:
        if node.kind == "call" and not node.target.startswith(PLAIN) and find_rule(node) is None:
            yield node


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_operator_of_the_zoo_has_a_rule(name: str) -> None:
    missing = {node.target: node.place for node in _without_rule(name) if node.packet not in JUSTIFIED}
    assert not missing


def test_the_checks_sees_an_operator_without_a_rule() -> None:
    assert find_rule(Node("n", "call", "aten.ctc_loss.IntList")) is None
    assert find_rule(Node("n", "call", "aten.relu.default")) is not None
