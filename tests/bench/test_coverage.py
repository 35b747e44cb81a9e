"""The coverage row: its figures from a table of facts, one network measured, and what a broken law looks like."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import _common as common
from bench import coverage
from pliant.testing import LAWS, Subject, zoo_subjects
from pliant.testing.zoo import ZOO


def _facts(**changes: Any) -> dict[str, Any]:
    law = {"holds": True, "figures": "", "cpu_seconds": 0.1}
    facts = {"refused": "", "coverage": 1.0, "half_share": 0.3, "as_expected": True, "laws": {"one": law, "two": law}}
    return {**facts, "cpu_seconds": 1.0, **changes}


def test_figures_count_networks_laws_and_refusals() -> None:
    broken = {"one": {"holds": False, "figures": "it does not", "cpu_seconds": 0.1}}
    figures = coverage.summary(
        {
            "mlp": _facts(),
            "vit": _facts(coverage=0.5, half_share=0.7, as_expected=None, laws=broken),
            "gpt": {"refused": "this line decides", "cpu_seconds": 0.1},
        }
    )
    wanted = {"networks": 3, "traced": 2, "laws_passed": 1, "laws_broken": 1, "refused_with_reason": 1}
    assert wanted.items() <= figures.items()
    assert figures["median_parameter_coverage"] == 0.5  # of 1, 0.5 and the refused one's 0
    assert figures["median_half_width_share"] == 0.7  # a refused network keeps all it has
    assert (figures["expected_groups_asserted"], figures["expected_groups_found"]) == (1, 1)
    assert set(coverage.REQUIRED) <= set(figures)


def test_a_row_of_the_table_names_the_laws_that_broke() -> None:
    broken = {"one": {"holds": False, "figures": "it does not", "cpu_seconds": 0.1}}
    assert coverage.row(_facts(laws=broken))["broken"] == {"one": "it does not"}
    assert "broken" not in coverage.row(_facts())
    assert "laws" not in coverage.row(_facts())


def test_a_network_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(common.CACHE_VARIABLE, str(tmp_path))
    facts = coverage.facts_of("mlp")
    assert (facts["refused"], facts["as_expected"]) == ("", True)
    assert 0.95 < facts["coverage"] <= 1
    assert facts["groups"] == {"width": [12, 16]}
    assert 0.2 < facts["half_share"] < 0.5
    assert list(facts["laws"]) == list(LAWS)
    assert all(said["holds"] for said in facts["laws"].values())
    monkeypatch.setattr(coverage, "measured", lambda name: pytest.fail("measured again"))
    assert coverage.facts_of("mlp") == facts


class Deciding(nn.Module):
    """What no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_refused_network_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject("mlp", Deciding, lambda: torch.randn(2, 3))
    monkeypatch.setattr(coverage, "zoo_subjects", lambda: {"mlp": subject})
    facts = coverage.measured("mlp")
    assert "this line decides by the values of a tensor" in facts["refused"]
    assert "laws" not in facts


def test_a_law_that_stumbles_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(subject: Subject) -> str:
        raise KeyError("gone")

    monkeypatch.setitem(LAWS, "cost_falls", stumble)
    said = coverage.judged(zoo_subjects()["mlp"], "cost_falls")
    assert not said["holds"]
    assert said["figures"].startswith("KeyError: 'gone'")


def test_every_room_that_decides_is_there() -> None:
    assert all((common.ROOT / "pliant" / room).is_dir() for room in coverage.DECIDING)
    assert len(ZOO) >= 18
