"""The measured part of docs/training.md."""

from typing import Any

from tools.training import measured

RESULTS: dict[str, dict[str, Any]] = {
    "train-once": {
        "figures": {
            "default_cost_ratio": 1.2, "resnet_longer_gain": 0.1, "resnet_nested_cost_ratio": 1.234,
            "resnet_nested_mean_gap": -0.2, "resnet_nested_mean_gap_low": -0.31, "resnet_nested_mean_gap_high": -0.09,
            "resnet_nested_worst_gap": -0.6, "resnet_nested_gap_at_equal_cost": 0.45,
            "gpt_sandwich_cost_ratio": 1.3, "gpt_sandwich_mean_gap": 0.01, "gpt_sandwich_mean_gap_low": 0.005,
            "gpt_sandwich_mean_gap_high": 0.015, "gpt_sandwich_worst_gap": -0.02, "gpt_sandwich_gap_at_equal_cost": 0.1,
        },
        "settings": {"resnet": {"unit": "points"}, "gpt": {"unit": "nats"}},
    },
    "onepass": {
        "figures": {
            "gap_to_default_points": -1.0, "resnet_gap_to_default_points": -1.0, "resnet_cost_over_default": 1.02,
            "gpt_gap_to_default_nats": 0.03, "gpt_cost_over_default": 0.97,
        }
    },
    "sortednet": {
        "figures": {
            "subnetworks": 160, "kept_share": 0.9712, "worst_kept_share": 0.88, "smallest_flops_share": 0.0406
        }
    },
    "ofa": {"figures": {"gain_points": 0.51, "gain_low_points": -0.1, "gain_high_points": 1.12}},
}  # fmt: skip


def test_figures_of_every_row_are_told() -> None:
    lines = measured(RESULTS).splitlines()
    assert "| nested | resnet | 1.234 times | -0.2 points | -0.31 to -0.09 | -0.6 | +0.45 |" in lines
    assert "| sandwich | gpt | 1.3 times | +0.01 nats | +0.005 to +0.015 | -0.02 | +0.1 |" in lines
    one = "-1 points at 1.02 times the cost (resnet); +0.03 nats at 0.97 times the cost (gpt)"
    assert f"| one pass against the default recipe | {one} | `onepass` |" in lines
    kept = "160 of them keep 97.1 % on average, 88 % at worst; the smallest has 4.06 % of the FLOPs"
    assert any(kept in line and line.endswith("| `sortednet` |") for line in lines)
    assert any("| +0.51 points (-0.1 to +1.12) | `ofa` |" in line for line in lines)
    assert any("| not measured yet | `bignas` |" in line for line in lines)
    assert sum(line.startswith("| default") for line in lines) == 0


def test_nothing_measured_says_so() -> None:
    text = measured({})
    assert text.count("not measured yet") == 5
