import copy
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pliant.core import PliantError
from pliant.core.forms import (
    ABSENT,
    Fields,
    Form,
    Slot,
    decode,
    encode,
    fill,
    from_dict,
    leaves_of,
    match,
    must_be,
    pack,
    part_of,
    rebuilt,
    slots,
    to_dict,
)

X, Y = torch.tensor([1.0]), torch.tensor([2.0])
Pair = namedtuple("Pair", ["a", "b"])


@dataclass(frozen=True)
class Batch:
    x: Tensor
    size: int = 3


class Thing:
    def __init__(self, x: Tensor) -> None:
        self.x, self.name = x, "thing"


VALUES: list[tuple[Any, Any, int]] = [
    (X, Slot(0), 1),
    ((X, [Y, 3]), (Slot(0), [Slot(1), 3]), 2),
    ({"k": X, "n": None}, {"k": Slot(0), "n": None}, 1),
    (OrderedDict(k=X), {"k": Slot(0)}, 1),
    (Pair(X, "b"), Fields(("a", "b"), (Slot(0), "b")), 1),
    (Batch(X), Fields(("x", "size"), (Slot(0), 3)), 1),
    ((), (), 0),
    (torch.float32, torch.float32, 0),
]


@pytest.mark.parametrize(("value", "form", "count"), VALUES)
def test_pack_names_the_place_of_each_tensor(value: Any, form: Any, count: int) -> None:
    leaves: list[Tensor] = []
    assert pack(value, leaves) == form
    assert leaves == leaves_of(value)
    assert len(leaves) == count == len(slots(form))
    if form is not torch.float32:
        assert decode(encode(form)) == form


@pytest.mark.parametrize(("value", "form", "count"), VALUES)
def test_rebuilt_keeps_the_types(value: Any, form: Any, count: int) -> None:
    new = rebuilt(value, iter([Y, X]))
    assert type(new) is type(value)
    assert [id(leaf) for leaf in leaves_of(new)] == [id(leaf) for leaf in (Y, X)[:count]]
    assert pack(new, []) == form


def test_objects_count_where_they_are_asked_for() -> None:
    thing = Thing(X)
    with pytest.raises(TypeError, match="a Thing among tensors"):
        pack(thing, [])
    assert pack(thing, [], objects=True) == Fields(("x", "name"), (Slot(0), "thing"))
    twin = rebuilt(thing, iter([Y]), objects=True)
    assert (type(twin), twin.x, twin.name, thing.x) == (Thing, Y, "thing", X)


def test_fill_makes_named_values_of_fields() -> None:
    assert fill((Slot(0), Fields(("k",), (Slot(1),))), lambda slot: slot.index) == (0, {"k": 1})


@pytest.mark.parametrize(
    ("value", "form", "kind", "message"),
    [
        (3, Slot(0), TypeError, "it was a tensor .* got 3"),
        (X, 3, TypeError, "it was 3 .* got a tensor"),
        (4, 3, ValueError, "it was 3 .* got 4; trace it again"),
        (True, 1, TypeError, "it was 1 .* got True"),
        ((X,), [Slot(0), Slot(1)], TypeError, "it was a sequence of 2 .* got a tuple of 1"),
        ({"a": X}, {"b": Slot(0)}, TypeError, "it had the keys b .* got a dict of a"),
        (Pair(X, 4), Fields(("a", "b"), (Slot(0), 3)), ValueError, r"it\.b was 3 .* got 4"),
        (X, ABSENT, TypeError, "it was nothing"),
    ],
)
def test_match_tells_what_differs(value: Any, form: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        match(value, form, {}, "it")


def test_match_takes_a_mapping_for_named_fields() -> None:
    found: dict[int, Tensor] = {}
    match({"x": X, "size": 3}, pack(Batch(X), []), found, "it")
    assert found == {0: X}


def forward(x: Any, n: int = 3, *more: Any, flag: bool = True, odd: Any = object, **named: Any) -> None:
    """A signature with everything."""


def test_a_form_of_a_call() -> None:
    form, leaves = Form.of(forward, ({"k": X, 0: [Y]}, 3, Y))
    assert form.names == ("x_k", "x_0_0", "more_0")
    assert [id(leaf) for leaf in leaves] == [id(X), id(Y), id(Y)]
    assert [name for name, _, _ in form.flat_arguments()] == ["x", "n", "more_0"]
    again = from_dict(to_dict(form))
    assert again == form
    for each in (form, again, copy.deepcopy(form), pickle.loads(pickle.dumps(form))):
        got = each.tensors(({"k": Y, 0: (X,)}, 3, X), {"flag": True})
        assert [id(leaf) for leaf in got] == [id(Y), id(X), id(X)]
        with pytest.raises(TypeError, match="odd was nothing when the network was traced"):
            each.tensors(({"k": Y, 0: (X,)}, 3, X), {"odd": 1})


def test_tensors_alone_are_taken_by_place_or_name() -> None:
    form = Form.plain(["a", "b"])
    assert form.tensors((X, Y), {}) == [X, Y] == form.tensors((), {"b": Y, "a": X})
    with pytest.raises(TypeError, match=r"net was traced with the inputs a, b; got 1 positional and \[\] \(missing"):
        form.tensors((X,), {}, "net")


def test_names_are_told_apart() -> None:
    form, _ = Form.of(lambda x, x_0, **kw: None, {"x": [X], "x_0": Y, "z!": X})
    assert form.names == ("x_0", "x_0_1", "z_")


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(PliantError, match=r"the example does not fit forward .*missing.*x"):
        Form.of(forward, {})
    with pytest.raises(PliantError, match="the argument x holds a Thing among tensors"):
        Form.of(forward, (Thing(X),))


def test_constants_of_other_types_cannot_be_stored() -> None:
    with pytest.raises(PliantError, match="cannot store an argument of type dtype"):
        encode((torch.float32,))


def test_parts_and_constants_of_what_is_called() -> None:
    assert part_of({"k": 1}, "k") == part_of((0, 1), 1) == part_of(Pair(0, 1), "b") == 1
    must_be(None, None, "it")
    with pytest.raises(ValueError, match="it was 1"):
        must_be(2, 1, "it")
