"""`pliant/__init__.py`: every name is there, lazily, and stays what it is whatever else is imported."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import pliant
import pliant_runtime

ROOT = Path(__file__).parents[1]
FUNCTIONS = ["compile", "elastic", "evaluate", "generate", "hardware", "one_pass", "prune", "search", "separate",
             "to_module", "trace", "train"]  # fmt: skip
CLASSES = ["Config", "Elastic", "Front", "OnePass", "PliantError", "Selection", "Settings", "Space"]
MODULES = ["data", "nets", "recipes", "runtime", "surgery"]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_public_name_is_what_it_should_be() -> None:
    assert sorted([*FUNCTIONS, *CLASSES, *MODULES, "__version__"]) == sorted(pliant.__all__)
    for name in FUNCTIONS:
        assert callable(getattr(pliant, name)), name
        assert not isinstance(getattr(pliant, name), type | ModuleType), name
    assert all(isinstance(getattr(pliant, name), type) for name in CLASSES)
    assert all(isinstance(getattr(pliant, name), ModuleType) for name in MODULES)
    assert set(pliant.__all__) <= set(dir(pliant))


def test_functions_survive_the_import_of_the_packages_they_share_a_name_with() -> None:
    code = (
        "import pliant, pliant.elastic.recipes, pliant.search\n"
        "from pliant.search import Front\n"
        "from pliant import elastic, search\n"
        "print(type(pliant.elastic).__name__, type(pliant.search).__name__, pliant.elastic is elastic,"
        " pliant.search is search, pliant.Front is Front)"
    )
    assert python(code) == "function function True True True"


def test_importing_the_map_loads_nothing() -> None:
    code = (
        "import sys, time\n"
        "begin = time.process_time()\n"
        "import pliant\n"
        "print(time.process_time() - begin < 0.5, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert python(code) == "True False False"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'elastik'; it has Config, .*elastic, "):
        getattr(pliant, "elastik")  # noqa: B009
    assert not hasattr(pliant, "elastik")


def test_type_checkers_and_the_interpreter_read_the_same_map() -> None:
    tree = ast.parse((ROOT / "pliant/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        (alias,) = node.names
        seen[alias.asname] = f"{node.module}.{alias.name}"
    table = next(
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_WHERE"
    )
    where = {name: place.replace(":", ".") for name, place in ast.literal_eval(table.value).items()}
    assert seen == where


def test_versions_agree() -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime = tomllib.loads((ROOT / "runtime/pyproject.toml").read_text())["project"]
    assert ours["version"] == runtime["version"] == pliant.__version__ == pliant_runtime.__version__
    assert f"pliant-runtime=={runtime['version']}" in ours["dependencies"]
    assert f"## [{pliant.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_runtime_goes_by_our_name_too() -> None:
    for name, value in vars(pliant.runtime).items():
        if not name.startswith("_"):
            assert getattr(pliant_runtime, name) is value
    assert {"load", "Family", "ArtifactError"} <= vars(pliant.runtime).keys()
