from pathlib import Path

from tools.budgets import check

ROOT = Path(__file__).parents[1]


def test_the_code_base_keeps_its_budgets() -> None:
    found, _ = check(ROOT)
    assert not found, "\n".join(f"{path}:{line}: {problem}" for path, line, problem in found)
