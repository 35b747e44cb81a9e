from types import ModuleType

import pytest

from pliant.core import resolve


@pytest.fixture
def room() -> ModuleType:
    module = ModuleType("room")
    vars(module).update(Nested=1, small_cnn=2, hidden=3, __all__=["Nested", "small_cnn"])
    return module


@pytest.mark.parametrize(
    ("name", "found"),
    [("Nested", 1), ("nested", 1), ("small_cnn", 2), ("small-cnn", 2), ("SmallCNN", 2)],
)
def test_case_dashes_and_underscores_do_not_matter(room: ModuleType, name: str, found: int) -> None:
    assert resolve(room, name, what="net") == found


@pytest.mark.parametrize("name", ["hidden", "nest", "", "__all__"])
def test_other_names_list_the_choices(room: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match=rf"no recipe called '{name}'; choose one of Nested, small_cnn"):
        resolve(room, name, what="recipe")
