from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pliant.core import Config
from pliant.core.config import Value

values = st.dictionaries(st.text(max_size=20), st.booleans() | st.integers(), max_size=6)


@given(values)
def test_json_gives_back_the_same_config(pairs: dict[str, Value]) -> None:
    config = Config(pairs)
    again = Config.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert [type(value) for value in again.values()] == [type(value) for value in config.values()]


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_does_not_matter(pairs: dict[str, Value], random: Random) -> None:
    items = list(pairs.items())
    random.shuffle(items)
    one, two = Config(pairs), Config(dict(items))
    assert one == two
    assert hash(one) == hash(two)
    assert one.to_json() == two.to_json()
    assert list(one) == list(two) == sorted(pairs)


def test_it_reads_as_a_mapping_and_works_as_a_key() -> None:
    config = Config({"width:fc1": 16, "depth:block": True})
    assert config["width:fc1"] == 16
    assert len(config) == 2
    assert "heads:attn" not in config
    assert {config: "a"}[Config({"depth:block": True, "width:fc1": 16})] == "a"
    assert config != {"width:fc1": 16, "depth:block": True}
    assert repr(config) == "Config({'depth:block': True, 'width:fc1': 16})"


def test_it_keeps_its_own_copy() -> None:
    pairs: dict[str, Value] = {"width:fc1": 16}
    config = Config(pairs)
    pairs["width:fc1"] = 8
    assert config["width:fc1"] == 16
    with pytest.raises(TypeError, match="does not support item assignment"):
        config["width:fc1"] = 8  # type: ignore[index]


def test_replace_gives_a_new_config() -> None:
    config = Config({"width:fc1": 16, "width:fc2": 8})
    assert config.replace({"width:fc2": 4}) == Config({"width:fc1": 16, "width:fc2": 4})
    assert config["width:fc2"] == 8


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ({"width:fc1": 0.5}, r"knob 'width:fc1' must be an int or a bool, got 0.5 \(float\)"),
        ({"width:fc1": "16"}, r"must be an int or a bool, got '16' \(str\)"),
        ({"width:fc1": None}, r"got None \(NoneType\)"),
        ({3: 16}, "knob names must be strings, got 3"),
    ],
)
def test_wrong_pairs(pairs: dict[str, Value], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Config(pairs)


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null"])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(ValueError, match="a config is a JSON object, got"):
        Config.from_json(text)


def test_text_that_is_no_json() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        Config.from_json("{width")
