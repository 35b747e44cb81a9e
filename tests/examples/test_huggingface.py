import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "examples" / "huggingface.py"


def _example() -> Any:
    pytest.importorskip("transformers", reason="needs the extra hf: pip install 'pliant[hf]'")
    spec = importlib.util.spec_from_file_location("huggingface_example", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_training_gives_networks_of_four_sizes() -> None:
    accuracy = _example().main(epochs=20)
    assert len(accuracy) == 4
    assert list(accuracy) == sorted(accuracy)
    assert min(accuracy) < 0.1 * max(accuracy)
    assert list(accuracy.values())[-1] > 0.2  # always saying the commonest letter gives 0.145


def test_it_takes_less_than_twenty_lines() -> None:
    (main,) = [node for node in ast.parse(PATH.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert (main.end_lineno or 0) - main.lineno < 20
