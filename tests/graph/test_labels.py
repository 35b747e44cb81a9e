"""The label store against slow references, and the ways in which fields meet."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pliant.graph.labels import Field, Labels, along, compact, vectors


def _naive_roots(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Smallest label of every component, by repeated sweeps."""
    roots = list(range(count))
    changed = True
    while changed:
        changed = False
        for a, b in pairs:
            low = min(roots[a], roots[b])
            if roots[a] != low or roots[b] != low:
                roots[a] = roots[b] = low
                changed = True
    return roots


@given(st.integers(2, 40), st.data())
def test_roots_are_those_of_a_naive_union_find(count: int, data: st.DataObject) -> None:
    pair = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    batches = data.draw(st.lists(st.lists(pair, max_size=20), max_size=4))
    labels = Labels()
    labels.fresh(count - 1)
    done: list[tuple[int, int]] = []
    for batch in batches:
        done += batch
        if batch:
            first, second = zip(*batch, strict=True)
            labels.tie(torch.tensor(first), torch.tensor(second))
        assert labels.roots().tolist() == _naive_roots(count, done)  # asking in between changes nothing


def test_long_chains_come_together() -> None:
    labels = Labels()
    chain = labels.fresh(1000)
    labels.tie(chain[:-1].flip(0), chain[1:].flip(0))
    assert set(labels.roots()[1:].tolist()) == {1}
    labels.fix([chain[-1:]])
    assert set(labels.roots().tolist()) == {0}


def test_ties_broadcast() -> None:
    labels = Labels()
    vector, column = labels.fresh(3), labels.fresh(2)[:, None]
    labels.tie(vector.expand(2, 3), column)
    assert set(labels.roots()[1:].tolist()) == {1}


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.data())
def test_compact_cuts_constant_axes_only(sizes: list[int], data: st.DataObject) -> None:
    shape = [size + 1 for size in sizes]
    varying = [data.draw(st.booleans()) for _ in shape]
    small = [size if vary else 1 for size, vary in zip(shape, varying, strict=True)]
    labels = torch.arange(int(np.prod(small))).reshape(small).expand(shape)
    found = compact(labels)
    assert list(found.shape) == small
    assert torch.equal(found.expand(shape), labels)


def test_a_field_that_spans_two_axes_keeps_one() -> None:
    labels = Labels()
    joint = Field(labels.fresh(6).reshape(2, 3))
    assert joint.axes == (0, 1)
    outer = labels.collapse(joint)
    assert outer.axes == (0,)
    roots = labels.roots()
    assert roots[joint.labels.numpy()].tolist() == [[1, 1, 1], [4, 4, 4]]
    inner = Labels()
    field = Field(inner.fresh(6).reshape(2, 3))
    assert inner.collapse(field, 1).axes == (1,)
    assert inner.roots()[field.labels.numpy()].tolist() == [[1, 2, 3], [1, 2, 3]]


def test_two_fields_on_one_axis_cannot_both_bend_and_soft_ones_give_way() -> None:
    labels = Labels()
    first, second = Field(labels.fresh(4)), Field(labels.fresh(4))
    assert labels.tidy([first, second]) == ()
    assert set(labels.roots().tolist()) == {0}
    labels = Labels()
    hard, soft = Field(labels.fresh(4)), Field(labels.fresh(4), soft=True)
    assert labels.tidy([soft, hard]) == (hard,)
    assert len(set(labels.roots().tolist())) == 9
    labels = Labels()
    assert labels.tidy([Field(labels.fresh(4), soft=True), Field(labels.fresh(4), soft=True)]) == ()
    labels = Labels()
    rows, columns = Field(along(labels.fresh(2), 0, 2)), Field(along(labels.fresh(3), 1, 2))
    assert labels.tidy([rows, columns, Field(torch.zeros(1, 1, dtype=torch.int64))]) == (rows, columns)


def test_vectors_gives_labels_by_axis() -> None:
    field = Field(along(torch.tensor([1, 2, 3]), 1, 3))
    assert field.labels.shape == (1, 3, 1)
    assert {axis: vector.tolist() for axis, vector in vectors([field]).items()} == {1: [1, 2, 3]}
