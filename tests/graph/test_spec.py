"""The zoo's labelled graphs are legal."""

import pytest
import torch

from pliant.core import PliantError, seeded
from pliant.graph import trace
from pliant.graph.analyse import Axis
from pliant.testing import zoo_subjects
from pliant.testing.subject import case_of
from pliant.testing.zoo import ZOO
from tests.graph.spec import check_spec

SUBJECTS = zoo_subjects()


_FAST = {name for name, subject in SUBJECTS.items() if "core" in subject.tags}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in _FAST)) for name in SUBJECTS]
)
def test_zoo_graph_is_legal(name: str) -> None:
    graph = case_of(SUBJECTS[name]).family.graph
    generator = seeded(0, "spec")
    whole = check_spec(graph, graph.counts({}))
    for _ in range(3):
        kept = {
            i: int(torch.randint(group.floor, group.units + 1, (), generator=generator))
            for i, group in enumerate(graph.groups)
        }
        assert check_spec(graph, graph.counts(kept)) == whole


def test_a_wrong_order_is_seen() -> None:
    graph = trace(ZOO["mixer"].make(), ZOO["mixer"].example())
    group = next(i for i, g in enumerate(graph.groups) if g.units == 16)
    key = next(
        k for k, axis in graph.analysis.axes.items() if k[0].startswith("transpose") and (axis.group == group).any()
    )
    axis = graph.analysis.axes[key]
    graph.analysis.axes[key] = Axis(axis.group, axis.rank[::-1].copy())
    with pytest.raises(AssertionError, match="in another order than the labels say"):
        check_spec(graph, graph.counts({group: 4}))


def test_a_wrong_size_is_seen() -> None:
    graph = trace(ZOO["vit"].make(), ZOO["vit"].example())
    heads = next(i for i, g in enumerate(graph.groups) if g.kind == "heads")
    graph.patches[:] = [patch for patch in graph.patches if heads not in patch.axis.group]
    with pytest.raises((AssertionError, RuntimeError, PliantError)):
        check_spec(graph, graph.counts({heads: 2}))
