from pathlib import Path

import pytest
import torch
from torch import nn

from pliant.cli.models import build, find_factory, offers, parse_args
from pliant.core import PliantError

USER = """
import torch
from torch import nn
from helper import WIDTH

class Net(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.fc = nn.Linear(4, width)

def make(width: int = 8) -> nn.Module:
    return Net(width)

def breaks() -> nn.Module:
    raise RuntimeError("no luck\\ntoday")

def text() -> str:
    return "no network"

ready = nn.Linear(2, 2)
_hidden = 3
limit = 7
"""


@pytest.fixture
def user(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WIDTH = 6\n")
    (tmp_path / "mine.py").write_text(USER)
    return tmp_path / "mine.py"


def test_args_are_json_else_text() -> None:
    assert parse_args(["a=1", "b=[1, 2]", "c=tanh", "d=true", "e=x=y"]) == {
        "a": 1,
        "b": [1, 2],
        "c": "tanh",
        "d": True,
        "e": "x=y",
    }


@pytest.mark.parametrize("pair", ["width", "=3", "my-arg=3"])
def test_args_need_key_and_value(pair: str) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse_args([pair])


def test_args_are_given_once() -> None:
    with pytest.raises(ValueError, match="--arg a was given twice"):
        parse_args(["a=1", "a=2"])


def test_a_file_and_what_lies_beside_it(user: Path) -> None:
    net = build(f"{user}:Net", {})
    assert isinstance(net.fc, nn.Linear)
    assert net.fc.out_features == 6
    assert isinstance(build(f"{user}:ready", {}), nn.Linear)


def test_arguments_reach_the_factory_and_data_only_our_own(user: Path) -> None:
    net = build(f"{user}:make", {"width": 3}, given={"width": 99})
    assert isinstance(net.fc, nn.Linear)
    assert net.fc.out_features == 3
    assert build(f"{user}:make", {}, given={"width": 99}).fc.out_features == 8  # type: ignore[union-attr]
    own = build("mlp", {"hidden": [5]}, given={"shape": [3], "classes": 4})
    assert own(torch.zeros(1, 3)).shape == (1, 4)


def test_weights_are_drawn_under_the_seed_and_the_global_generator_stays() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (build("mlp", {"hidden": [5]}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, third = (next(net.parameters()) for net in (one, two, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_module_by_its_name() -> None:
    factory, own = find_factory("torch.nn:Identity")
    assert factory is nn.Identity
    assert not own


def test_offers_are_public_functions_classes_and_networks(user: Path) -> None:
    from pliant.cli.models import load_file

    assert offers(load_file(user)) == ["Net", "breaks", "make", "ready", "text"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch", r"'nosuch'; choose one of .*mlp"),
        ("{user}", r"NAME is one of Net, breaks, make, ready, text"),
        ("{user}:nosuch", r"'nosuch' does not exist\. choose one of Net, breaks, make"),
        ("{user}:limit", r"'limit' is no factory\. choose one of Net"),
        ("{user}:breaks", r"mine.py:15: breaks\(\) raised RuntimeError: no luck"),
        ("{user}:text", r"returned str, not an nn.Module"),
        ("nosuchfile.py:f", r"nosuchfile.py: no such file"),
        ("no.such.package:f", r"cannot import 'no.such.package'"),
    ],
)
def test_what_is_wrong_is_named(user: Path, name: str, said: str) -> None:
    with pytest.raises((ValueError, PliantError), match=said):
        build(name.format(user=user), {})


def test_unknown_arguments_list_the_known_ones(user: Path) -> None:
    with pytest.raises(ValueError, match=r"takes no argument 'depth'; it takes width"):
        build(f"{user}:make", {"depth": 3})


def test_a_file_that_does_not_parse_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def f(:\n")
    with pytest.raises(PliantError, match=r"bad.py:1: loading bad.py raised SyntaxError"):
        build(f"{tmp_path / 'bad.py'}:f", {})
