"""The measured part of docs/search.md."""

from typing import Any

from tools.searching import measured

RESULTS: dict[str, dict[str, Any]] = {
    "search-replay": {"figures": {"evals_to_nsga2_500": 35, "evals_to_linas_250": 37.5}},
    "deep-architect": {"figures": {"accuracy": 0.8735, "best_accuracy": 0.874}, "baseline": {"accuracy": 0.87}},
    "onnx-net": {"figures": {"tau": 0.5036, "gain_over_parameters": -0.1}, "baseline": {"tau": 0.42}},
    "search-resume": {"figures": {"kills": 20, "lost_evaluations": 0, "repeated_evaluations": 1}},
}


def test_figures_of_every_row_are_told() -> None:
    lines = measured(RESULTS).splitlines()
    assert "| evaluations until what LINAS has after 250 is found | 37.5 | 250 | `search-replay` |" in lines
    best = "87.4 % (the best there is: 87.4 %) | DeepArchitect's tree search 87 %"
    assert any(f"| {best} | `deep-architect` |" in line for line in lines)
    assert any("| 0.5036 | FLOPs 0.42, parameters 0.6036 | `onnx-net` |" in line for line in lines)
    assert any("| 20 kills: 0, 1 |  | `search-resume` |" in line for line in lines)
    assert sum("not measured yet" in line for line in lines) == 3


def test_nothing_measured_says_so() -> None:
    assert measured({}).count("not measured yet") == 8
