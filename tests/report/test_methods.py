from pathlib import Path
from types import ModuleType

import pytest

from pliant.core import Facts
from pliant.report.methods import catalogue

A = 'Facts("Slimmable Neural Networks", 2018, "elastic", rows=("010",))'
FILES = {
    "__init__.py": "",
    "one.py": f"from pliant.core import Facts\nFACTS = {A}\nclass Slim:\n    facts = FACTS\n",
    "two.py": "from catalogued.one import Slim\nfrom pliant.core import Facts\nMORE = (Facts('B', 2020, 'search'),)\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import importlib

    (tmp_path / "catalogued").mkdir()
    for name, text in FILES.items():
        (tmp_path / "catalogued" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("catalogued")


def test_each_method_once_under_the_name_people_use(package: ModuleType) -> None:
    found = catalogue(package)
    assert [(method.name, method.module) for method in found] == [("Slim", "catalogued.one"), ("B", "catalogued.two")]
    assert found[0].facts == Facts("Slimmable Neural Networks", 2018, "elastic", rows=("010",))
    assert found[0].to_dict()["year"] == 2018


def test_the_package_itself_has_methods_and_each_has_a_place() -> None:
    found = catalogue()
    assert found
    for method in found:
        assert method.module.startswith(f"pliant.{method.facts.room}"), method
