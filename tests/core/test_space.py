import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pliant.core import Config, Knob, Space
from pliant.core.config import Value

counts = st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True).map(lambda found: tuple(sorted(found)))
flags = st.sampled_from([(True,), (False, True)])
spaces = st.dictionaries(st.text(min_size=1, max_size=8), counts | flags, max_size=5).map(
    lambda found: Space([Knob(name, choices) for name, choices in found.items()])
)

WIDTH = Knob("width:a", (8, 16, 32))
DEPTH = Knob("depth:b", (False, True))
SPACE = Space([WIDTH, DEPTH])


@given(spaces)
def test_json_gives_back_the_same_space(space: Space) -> None:
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert hash(again) == hash(space)
    assert [type(c) for knob in again for c in knob.choices] == [type(c) for knob in space for c in knob.choices]


@given(spaces, st.integers(0, 2**31))
def test_samples_are_members_and_follow_the_generator(space: Space, seed: int) -> None:
    config = space.sample(torch.Generator().manual_seed(seed))
    assert space.validate(config) == config
    assert config == space.sample(torch.Generator().manual_seed(seed))
    assert set(config) == {knob.name for knob in space}


@given(spaces)
def test_encoding_is_one_hot_per_knob_and_tells_configs_apart(space: Space) -> None:
    for config in (space.largest(), space.smallest()):
        row = space.encode(config)
        assert row.dtype == np.float64
        assert row.shape == (sum(len(knob.choices) for knob in space),)
        assert row.sum() == len(space)
    assert np.array_equal(space.encode(space.largest()), space.encode(space.smallest())) == (space.size == 1)


@given(spaces, st.floats(0.01, 1))
def test_uniform_takes_the_nearest_choice(space: Space, share: float) -> None:
    config = space.uniform(share)
    for knob in space:
        whole = knob.choices[-1]
        if isinstance(whole, bool):
            assert config[knob.name] is whole
        else:
            distance = abs(config[knob.name] - share * whole)
            assert distance == min(abs(choice - share * whole) for choice in knob.choices)
    assert space.uniform(1.0) == space.largest()


def test_configs_are_all_there_once_and_begin_with_the_smallest() -> None:
    configs = list(SPACE.configs())
    assert len(configs) == len(set(configs)) == SPACE.size == 6
    assert configs[0] == SPACE.smallest() == Config({"width:a": 8, "depth:b": False})
    assert configs[-1] == SPACE.largest() == Config({"width:a": 32, "depth:b": True})


def test_samples_are_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(SPACE.sample(generator) for _ in range(3000))
    assert len(drawn) == 6
    assert all(420 < count < 580 for count in drawn.values())


def test_knobs_by_name_and_in_order() -> None:
    assert SPACE["depth:b"] is DEPTH
    assert [knob.kind for knob in SPACE] == ["width", "depth"]
    assert len(SPACE) == 2
    assert Space([DEPTH, WIDTH]) != SPACE
    assert repr(SPACE) == "Space(2 knobs, 6 sub-networks)"
    with pytest.raises(ValueError, match="no knob 'width:c'; knobs are width:a, depth:b"):
        SPACE["width:c"]
    with pytest.raises(ValueError, match=r"no knob 'x'; knobs are \(none\)"):
        Space([])["x"]


def test_the_empty_space_has_one_config() -> None:
    space = Space([])
    assert space.size == 1
    assert list(space.configs()) == [Config({})]
    assert space.encode(Config({})).shape == (0,)


def test_validate_fills_in_and_refuses() -> None:
    assert SPACE.validate({"depth:b": False}) == Config({"width:a": 32, "depth:b": False})
    assert SPACE.validate({}) == SPACE.largest()
    # 1 == True in Python: the knob's own value is what is kept.
    assert SPACE.validate({"depth:b": 1})["depth:b"] is True
    with pytest.raises(ValueError, match=r"knob 'width:a' takes one of \[8, 16, 32\], got 9"):
        SPACE.validate({"width:a": 9})
    with pytest.raises(ValueError, match="no knob 'width:z'"):
        SPACE.validate({"width:z": 8})


@pytest.mark.parametrize("choices", [(16, 8), (8, 8), (True, False)])
def test_choices_must_ascend(choices: tuple[Value, ...]) -> None:
    with pytest.raises(ValueError, match="choices of knob 'width:a' must strictly ascend, got"):
        Knob("width:a", choices)


def test_other_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="knob 'width:a' needs at least one choice"):
        Knob("width:a", ())
    with pytest.raises(ValueError, match=r"knob names must differ, got twice: \['width:a'\]"):
        Space([WIDTH, WIDTH, DEPTH])
    for share in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got"):
            SPACE.uniform(share)
