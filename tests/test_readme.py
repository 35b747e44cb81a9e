"""What the README and the quickstart say is run, and what they claim is compared with the results."""

import re
from pathlib import Path
from typing import Any

import pytest

from tools.catalogue import read_results
from tools.readme import blocks, claims, disagreement

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "page", ["README.md", "docs/quickstart.md", "docs/training.md", "docs/search.md", "docs/one-pass.md"]
)
def test_the_snippets_run_in_order_and_print_what_the_page_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text()
    found = blocks(text, "python")
    assert found
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        # Blank lines in front make tracebacks point at the line of the page.
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
    printed = capsys.readouterr().out
    for shown in blocks(text, "text"):
        assert shown.code in printed


def test_the_readme_is_short_and_begins_with_its_two_commands() -> None:
    assert 100 <= len(README.splitlines()) <= 150
    (first, *_), (python, *_) = blocks(README, ""), blocks(README, "python")
    assert re.findall(r"^make (\w+)", first.code, re.MULTILINE) == ["demo", "test"]
    assert first.line < 12
    assert len(python.code.splitlines()) <= 12


def test_figures_are_those_of_the_results() -> None:
    results = {result.row: result.data for result in read_results(ROOT / "bench" / "results")}
    wrong = [f"README.md:{c.line}: {said}" for c in claims(README) if (said := disagreement(c, results.get(c.row, {})))]
    assert not wrong, "\n".join(wrong)


def test_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in target]
    missing = [target for target in targets if not (ROOT / target).is_file()]
    assert targets
    assert not missing
