"""Spaces with names, ranges, conditions and sub-spaces."""

import json
import math
import os
import pickle
import subprocess
import sys
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pliant.core import Config, Knob, Space, either, nested, optional, repeated

CELL = Space([Knob("op", ("conv", "pool", "skip")), Knob("kernel", (3, 5), when={"op": "conv"})])
MLP = Space([Knob("hidden", (16, 64)), Knob.floats("drop", (0, 0.5), points=3)])
NET = Space(
    [
        Knob("width", (8, 16, 32)),
        repeated("cell", CELL, n=(1, 3)),
        optional("squeeze", Space([Knob("ratio", (4, 8))])),
        either("head", {"linear": Space([]), "mlp": MLP}),
        repeated("tail", Space([Knob("k", (1, 2))]), n=2, tied=True),
    ]
)  # fmt: skip


@st.composite
def spaces(draw: Any, depth: int = 2) -> Space:
    parts: list[Any] = []
    for number in range(draw(st.integers(0, 3))):
        count = draw(st.integers(1, 3))
        when = {}
        before = [knob for part in parts if isinstance(part, Space) for knob in part] + [
            part for part in parts if isinstance(part, Knob)
        ]
        if before and draw(st.booleans()):
            parent = draw(st.sampled_from(before))
            when = {parent.name: sorted(draw(st.sets(st.sampled_from(parent.choices), min_size=1)))}
        choices = draw(st.sampled_from([tuple("abc"[:count]), tuple(range(count)), (False, True)]))
        parts.append(Knob(f"k{number}", choices, when=when))
        if depth and draw(st.booleans()):
            inner = draw(spaces(depth - 1))
            least = draw(st.integers(0, 2))
            made = draw(
                st.sampled_from(
                    [
                        optional(f"o{number}", inner),
                        repeated(f"r{number}", inner, n=(least, least + 1), tied=draw(st.booleans())),
                        either(f"e{number}", {"x": inner, "y": Space([])}),
                        nested(f"n{number}", inner),
                    ]
                )
            )
            parts.append(made)
    return Space(parts)


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_size_is_the_number_of_configs(space: Space) -> None:
    if space.size > 2000:
        return
    configs = list(space.configs())
    assert len(configs) == len(set(configs)) == space.size
    assert configs[0] == space.smallest()
    rows = {space.encode(config).tobytes() for config in configs}
    assert len(rows) == space.size  # the encoding tells them apart
    assert all(space.validate(config) == config for config in configs)


@given(spaces(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_moves_stay_in_the_space(space: Space, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = space.sample(generator), space.sample(generator)
    moved = [
        one,
        space.mutate(one, generator),
        space.mutate(one, generator, times=3),
        space.cross(one, other, generator=generator),
    ]
    moved += [space.largest(), space.uniform(0.5), *islice(space.neighbours(one), 50)]
    for config in moved:
        assert space.validate(config) == config
        assert space.encode(config).shape == (len(space.columns),)
    if space.size > 1:
        assert space.mutate(one, generator) != one
    assert one not in space.neighbours(one)


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_json_gives_back_the_same_language(space: Space) -> None:
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert again.to_dict() == space.to_dict()
    assert again.values(again.largest()) == space.values(space.largest())


def test_files_written_before_there_were_conditions_still_load() -> None:
    old = {"knobs": [{"name": "width:a", "choices": [8, 16]}, {"name": "depth:b", "choices": [False, True]}]}
    space = Space.from_dict(old)
    assert space == Space([Knob("width:a", (8, 16)), Knob("depth:b", (False, True))])
    assert space.to_dict() == old


def test_a_written_out_space_by_hand() -> None:
    cell = 2 + 1 + 1  # conv with two kernels, pool, skip
    assert NET.size == 3 * (cell + cell**2 + cell**3) * (1 + 2) * (1 + 2 * 3) * 2
    assert [knob.name for knob in NET][:5] == ["width", "cell", "cell.0.op", "cell.0.kernel", "cell.1.op"]
    config = NET.validate({"cell": 1, "cell.0.op": "pool", "squeeze": False, "head": "linear", "tail.k": 1})
    assert dict(config) == {
        "cell": 1, "cell.0.op": "pool", "head": "linear", "squeeze": False, "tail.k": 1, "width": 32
    }  # fmt: skip
    assert NET.values(config) == {
        "width": 32, "cell": [{"op": "pool"}], "squeeze": None, "head": {"choice": "linear"},
        "tail": [{"k": 1}, {"k": 1}],
    }  # fmt: skip


def test_sizes_far_beyond_enumeration_are_exact() -> None:
    deep = repeated("stage", Space([repeated("cell", CELL, n=(1, 5)), Knob("width", (8, 16, 32))]), n=(1, 6))
    inner = 3 * sum(4**n for n in range(1, 6))
    assert deep.size == sum(inner**n for n in range(1, 7))


def test_knobs_that_are_not_there_are_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"knob 'cell.0.kernel' is only there while 'cell.0.op' is 'conv', it is 'pool'"
    ):
        NET.validate({"cell.0.op": "pool", "cell.0.kernel": 3})
    with pytest.raises(ValueError, match=r"knob 'cell.2.op' is only there while 'cell' is 3, it is 2"):
        NET.validate({"cell": 2, "cell.2.op": "conv"})
    with pytest.raises(ValueError, match=r"'cell.1.kernel' is only there while 'cell.1.op' is 'conv', it is not there"):
        NET.validate({"cell": 1, "cell.1.kernel": 5})
    with pytest.raises(ValueError, match="no value for knob 'width'"):
        NET.encode(Config({}))


def test_encoding_has_a_mask_and_ranges_as_numbers() -> None:
    space = Space([Knob("on", (False, True)), Knob.floats("lr", (1e-4, 1e-2), points=3, log=True, when={"on": True})])
    assert space.columns == ("on=False", "on=True", "lr", "lr absent")
    assert space["lr"].choices == (1e-4, 1e-3, 1e-2)
    np.testing.assert_array_equal(space.encode({"on": False}), [1, 0, 0, 1])
    np.testing.assert_array_equal(space.encode({"on": True, "lr": 1e-3}), [0, 1, 0.5, 0])


def test_ranges() -> None:
    assert Knob.integers("n", (2, 11), step=4).choices == (2, 6, 10)
    widths = Knob.integers("n", (8, 512), step=8, log=True).choices
    assert widths[0] == 8
    assert widths[-1] == 512
    assert all(width % 8 == 0 for width in widths)
    assert len(widths) < 64
    drops = Knob.floats("p", (0, 1), points=11).choices
    assert drops[3] == 0.3
    assert all(isinstance(drop, float) for drop in drops)
    assert Knob.integers("n", (5, 5)).choices == (5,)
    assert Knob.integers("n", (5, 5), log=True).choices == (5,)


def test_neighbours_step_along_ordered_choices_only() -> None:
    space = Space([Knob("op", ("a", "b", "c")), Knob("n", (1, 2, 3, 4))])
    found = space.neighbours({"op": "b", "n": 2})
    assert {(c["op"], c["n"]) for c in found} == {("a", 2), ("c", 2), ("b", 1), ("b", 3)}
    sizes = Space([Knob("size", ("small", "middle", "large"), ordered=True)])
    assert [c["size"] for c in sizes.neighbours({"size": "small"})] == ["middle"]
    assert sizes.uniform(0.5)["size"] == "middle"


def test_children_take_what_their_parents_have() -> None:
    generator = torch.Generator().manual_seed(0)
    one = NET.validate({"cell": 3, **{f"cell.{i}.op": "pool" for i in range(3)}})
    other = NET.validate({"cell": 2, **{f"cell.{i}.op": "skip" for i in range(2)}})
    for _ in range(20):
        child = NET.cross(one, other, generator=generator)
        for name, value in child.items():
            assert value in {parent[name] for parent in (one, other) if name in parent}
    assert len({NET.cross(one, other, generator=generator) for _ in range(20)}) > 5


def conv(values: dict[str, Any]) -> Any:
    if values["op"] == "conv":
        return lambda width: nn.Conv1d(width, width, values["kernel"], padding=values["kernel"] // 2)
    return lambda width: nn.AvgPool1d(3, 1, 1) if values["op"] == "pool" else nn.Identity()


def network(values: dict[str, Any]) -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, values["width"], 1), *(cell(values["width"]) for cell in values["cell"]))


def test_a_point_is_built_from_its_sub_spaces() -> None:
    cell = Space(CELL.parts, build=conv)
    space = Space([Knob("width", (4, 8)), repeated("cell", cell, n=(1, 3))], build=network)
    module = space.build({"width": 4, "cell": 2, "cell.0.op": "conv", "cell.0.kernel": 5, "cell.1.op": "skip"})
    assert [type(part).__name__ for part in module] == ["Conv1d", "Conv1d", "Identity"]
    assert module[1].kernel_size == (5,)
    assert module(torch.zeros(2, 1, 9)).shape == (2, 4, 9)
    with pytest.raises(ValueError, match="this space has no builder"):
        NET.build(NET.largest())
    assert Space.from_dict(space.to_dict()) == space


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Knob("a", ()), "knob 'a' needs at least one choice"),
        (lambda: Knob("a", ("x", "x")), r"choices of knob 'a' must differ"),
        (lambda: Knob("a", ("x",), scale="log"), "the scale of knob 'a'"),
        (lambda: Knob("a", (1,), when={"b": ()}), "can never be there: its condition on 'b' names no value"),
        (lambda: Knob.integers("a", (3, 2)), "range 'a' is empty: it runs from 3 to 2"),
        (lambda: Knob.integers("a", (0, 10**9)), "range 'a' has 1000000001 values, at most 65536"),
        (lambda: Knob.floats("a", (1, 1)), "range 'a' is empty"),
        (lambda: Knob.floats("a", (0, 1), log=True), "positive low end"),
        (lambda: Knob.floats("a", (0, math.inf)), "not finite"),
        (lambda: Space([Knob("a", (1, 2), when={"b": 1}), Knob("b", (1, 2))]), "which must be a knob that"),
        (lambda: Space([Knob("a", (1, 2), when={"a": 1})]), "knob 'a' hangs on 'a', which must be a knob"),
        (lambda: Space([Knob("a", (1, 2)), Knob("b", (1, 2), when={"a": 3})]), "of knob 'b' cannot hold: knob 'a'"),
        (
            lambda: Space([
                Knob("a", (1, 2)), Knob("b", (1, 2), when={"a": 1}), Knob("c", (1, 2), when={"a": 2, "b": 1}),
            ]),
            "knob 'c' can never be there: its conditions on 'a' contradict",
        ),
        (lambda: repeated("a", CELL, n=(3, 1)), r"'a' is repeated \(3, 1\) times"),
        (lambda: repeated("a", CELL, n=0), "'a' is repeated 0 times"),
        (lambda: either("a", {}), "'a' needs at least one sub-space"),
        (lambda: Space([Knob("a", (1,)), optional("a", CELL)]), r"knob names must differ, got twice: \['a'\]"),
        (lambda: CELL.mutate(CELL.largest(), torch.Generator(), times=0), "times must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_empty_and_contradictory_spaces_are_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_configs_are_found_again_in_another_process() -> None:
    code = "import pickle, sys; c, table = pickle.load(sys.stdin.buffer); print(table[type(c)(dict(c))])"
    config = Config({"op": "conv", "kernel": 3})
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickle.dumps((config, {config: "found"})), capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == b"found"


def test_values_json_cannot_hold_are_refused() -> None:
    for value in (float("nan"), object(), {1}):
        with pytest.raises(TypeError, match="knob 'a' takes what JSON holds"):
            Knob("a", (value,))
    with pytest.raises(TypeError, match="knob 'width:a' must be an int or a bool, got 'x'"):
        Knob("width:a", ("x",))
    assert Config.from_json(Config({"a": (1, ("x", None))}).to_json()) == Config({"a": (1, ("x", None))})
