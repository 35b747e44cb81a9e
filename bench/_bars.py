"""The bars that rows are held against, and their table in STATUS.md."""

from dataclasses import dataclass

from bench._common import RESULTS, ROOT
from pliant.core import read_json, write_atomic

STATUS = ROOT / "bench" / "STATUS.md"
MARK = "| row | figure | bar | measured | |\n"


@dataclass(frozen=True)
class Bar:
    """A figure that must not lie above (`most`) or below (`least`) a bound.

    Args:
        row: whose figure.
        figure: its name in the results file.
        least, most: the bounds; None where there is none.
        unit: for the reader.
    """

    row: str
    figure: str
    least: float | None = None
    most: float | None = None
    unit: str = ""

    def told(self) -> str:
        """The bounds in words."""
        parts = [f"{sign} {bound:g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if bound is not None]
        return " and ".join(parts) + (f" {self.unit}" if self.unit else "")

    def measured(self) -> float | None:
        """The figure; None where the row was not measured."""
        path = RESULTS / f"{self.row}.json"
        return float(read_json(path)["figures"][self.figure]) if path.exists() else None

    def verdict(self, value: float | None) -> str:
        """met, missed or open."""
        if value is None:
            return "open"
        low = self.least is not None and value < self.least
        return "missed" if low or (self.most is not None and value > self.most) else "met"


BARS = (
    Bar("digits", "mean_gap_points", least=-0.7, unit="points"),
    Bar("digits", "worst_gap_points", least=-2.0, unit="points"),
    Bar("main-job", "subnetworks", least=200),
    Bar("main-job", "picked", least=5),
    Bar("main-job", "flops_range", least=6, unit="times"),
    Bar("main-job", "mean_gap_points", least=-0.5, unit="points"),
    Bar("main-job", "latency_monotone", least=1),
    Bar("demo", "seconds", most=120, unit="s"),
    Bar("graph-speed", "resnet50_step_ratio", most=1.15, unit="times"),
    Bar("graph-speed", "vit_s_step_ratio", most=1.15, unit="times"),
    Bar("graph-speed", "gpt2_step_ratio", most=1.15, unit="times"),
    Bar("graph-speed", "memory_over_full", most=1.1, unit="times"),
    Bar("graph-speed", "switch_ms", most=2, unit="ms"),
    Bar("graph-speed", "resnet50_cpu_s", most=4, unit="CPU s"),
    Bar("graph-speed", "gpt2_cpu_s", most=5, unit="CPU s"),
    Bar("graph-speed", "extract_s", most=1, unit="CPU s"),
    Bar("graph-speed", "extracted_speed_beyond_noise", least=0, most=0),
    Bar("graph-speed", "extracted_parameters_ratio", least=1, most=1),
    Bar("coverage", "networks", least=80),
    Bar("coverage", "refused_with_reason", most=4),
    Bar("coverage", "laws_broken", most=0),
    Bar("coverage", "median_parameter_coverage", least=0.9),
    Bar("coverage", "median_half_width_share", most=0.4),
    Bar("coverage", "hf_families", least=40),
    Bar("coverage", "expected_groups_asserted", least=30),
    Bar("coverage", "expected_groups_found", least=128),
    Bar("peers", "ours_ok", least=149),
    Bar("train-once", "default_cost_ratio", most=1.3, unit="times"),
    Bar("train-once", "default_mean_gap_points", least=-0.3, unit="points"),
    Bar("train-once", "default_worst_gap_points", least=-0.8, unit="points"),
    Bar("train-once", "default_mean_gap_nats", least=-0.02, unit="nats"),
    Bar("train-once", "better_than_separate_at_equal_cost", least=1),
    Bar("onepass", "max_error", most=1e-5),
    Bar("onepass", "step_cost_ratio", most=1.15, unit="times"),
    Bar("sortednet", "subnetworks", least=160),
    Bar("sortednet", "kept_share", least=0.96),
    Bar("sortednet", "smallest_flops_share", most=0.25),
    Bar("search-replay", "evals_to_nsga2_500", most=160, unit="evaluations"),
    Bar("search-replay", "evals_to_linas_250", most=150, unit="evaluations"),
    Bar("search-replay", "seconds_100k", most=60, unit="CPU s"),
    Bar("search-predictor", "tau_100", least=0.87),
    Bar("search-predictor", "tau_50", least=0.83),
    Bar("search-predictor", "coverage_90", least=0.85, most=0.95),
    Bar("search-front", "configs", least=1000),
    Bar("search-front", "flops_range", least=6, unit="times"),
    Bar("search-front", "hypervolume_share", least=0.98),
    Bar("search-resume", "kills", least=20),
    Bar("search-resume", "lost_evaluations", most=0),
    Bar("search-resume", "repeated_evaluations", most=0),
    Bar("search-resume", "same_front", least=1),
    Bar("hw-aware-search", "gain_over_random", least=0, unit="points"),
    Bar("hw-aware-search", "gain_over_rival", least=0, unit="points"),
    Bar("deep-architect", "gain_over_random", least=0, unit="points"),
    Bar("deep-architect", "gain_over_rival", least=0, unit="points"),
    Bar("hardware-table", "rank_correlation", least=0.95),
    Bar("hardware-table", "median_relative_error", most=0.08),
    Bar("onnx-net", "gain_over_random", least=0),
    Bar("onnx-net", "gain_over_rival", least=0),
    Bar("train-once", "resnet_longer_gain", most=0.2, unit="points"),
    Bar("train-once", "dwsep_longer_gain", most=0.2, unit="points"),
    Bar("compile-dynamic", "networks", least=20),
    Bar("compile-dynamic", "compiled", least=23),
    Bar("compile-dynamic", "mismatches", most=0),
    Bar("compile-dynamic", "near_threshold_share", most=0.001),
    Bar("compile-dynamic", "median_x_eager", least=2.2, unit="times"),
    Bar("compile-dynamic", "min_x_eager", least=1, unit="times"),
    Bar("compile-dynamic", "min_x_compile", least=1, unit="times"),
    Bar("compile-dynamic", "host_us_per_state", most=5, unit="microseconds"),
    Bar("compile-dynamic", "compile_s_40_blocks", most=5, unit="CPU s"),
    Bar("compile-batch", "matmul_x_rowwise", least=2.5, unit="times"),
    Bar("compile-batch", "conv_x_rowwise", least=1.4, unit="times"),
    Bar("compile-batch", "worst_over_all", most=1.1, unit="times"),
    Bar("compile-fuzz", "artifacts", least=10000),
    Bar("compile-fuzz", "crashes", most=0),
    Bar("compile-fuzz", "hangs", most=0),
    Bar("compile-fuzz", "wrong", most=0),
    Bar("serve-memory", "disk_ratio", most=1.05, unit="times"),
    Bar("serve-memory", "ram_ratio", most=1.1, unit="times"),
    Bar("serve-memory", "latency_ratio_b8", most=1.15, unit="times"),
    Bar("serve-memory", "conv_latency_ratio", most=1.005, unit="times"),  # 1.00: the same graph, and noise
    Bar("serve-slo", "dynamic_range", least=4, unit="times"),
    Bar("serve-slo", "accepted_lost", most=0),
    Bar("serve-slo", "in_slo_share", least=0.995),
    Bar("serve-slo", "accuracy_gap_share", least=0.5),
    Bar("serve-slo", "simulated_in_slo_share", least=0.995),
    Bar("serve-slo", "simulated_accuracy_gap_share", least=0.5),
    Bar("serve-slo-http", "accepted_lost", most=0),
    Bar("serve-slo-http", "in_slo_share", least=0.995),
    Bar("serve-slo-http", "control_in_slo_share", least=0.999),
    Bar("serve-overload", "accepted_within_2x_share", least=0.99),
    Bar("serve-overload", "memory_growth_mb", most=5, unit="MB"),
    Bar("serve-overload", "crashes", most=0),
    Bar("serve-overhead", "http_ms", most=0.3, unit="ms"),
    Bar("serve-fuzz", "requests", least=100000),
    Bar("serve-fuzz", "crashes", most=0),
    Bar("serve-fuzz", "hangs", most=0),
    Bar("serve-fuzz", "server_errors", most=0),
)


def table() -> str:
    """The bars with what was measured, in Markdown."""
    lines = [MARK, "|---|---|---|---:|---|\n"]
    for bar in BARS:
        value = bar.measured()
        shown = "" if value is None else f"{value:.4g}"
        lines.append(f"| {bar.row} | {bar.figure} | {bar.told()} | {shown} | {bar.verdict(value)} |\n")
    return "".join(lines)


def update() -> None:
    """Bring the table at the end of STATUS.md up to date with the results."""
    text = STATUS.read_text()
    write_atomic(STATUS, text[: text.index(MARK)] + table())
