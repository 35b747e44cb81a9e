"""What happened to the requests of one run, simulated or real, and its figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANSWERED, SHED, FAILED = "answered", "shed", "failed"


@dataclass(frozen=True)
class Sample:
    """One request.

    Args:
        at: when it was due, in seconds from the start.
        latency: seconds from then to its answer; of refused ones to the refusal.
        outcome: `answered`, `shed` (refused at the door) or `failed` (let in, but never answered).
        subnet: which sub-network answered; None where none did.
    """

    at: float
    latency: float
    outcome: str
    subnet: int | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values do not exceed; NaN without values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summary(samples: Sequence[Sample], slo_s: float, quality: Mapping[int, float]) -> dict[str, Any]:
    """Figures of a run; times in milliseconds, shares from 0 to 1.

    Args:
        samples: the requests.
        slo_s: the promise.
        quality: figure of merit of every sub-network.

    Returns:
        offered, answered, shed and failed requests; p50_ms, p99_ms and in_slo_share of the answered; in_slo_of_offered;
        the mean quality of the answers, and the share of every sub-network. None stands where nothing was answered.
    """
    answered = [sample for sample in samples if sample.outcome == ANSWERED]
    counts = {kind: sum(sample.outcome == kind for sample in samples) for kind in (SHED, FAILED)}
    times = [sample.latency for sample in answered]
    within = sum(time <= slo_s for time in times)
    shares: dict[int, int] = {}
    for sample in answered:
        if sample.subnet is not None:
            shares[sample.subnet] = shares.get(sample.subnet, 0) + 1
    known = sum(shares.values())
    merit = sum(count * quality[number] for number, count in shares.items()) / known if known else None
    return {
        "offered": len(samples), "answered": len(answered), **counts,
        "p50_ms": percentile(times, 0.5) * 1e3 if times else None,
        "p99_ms": percentile(times, 0.99) * 1e3 if times else None,
        "in_slo_share": within / len(answered) if answered else None,
        "in_slo_of_offered": within / len(samples) if samples else None,
        "quality": merit,
        "subnets": {str(number): count / known for number, count in sorted(shares.items())},
    }  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """A stretch of constant load: requests per second, and seconds."""

    rate: float
    seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate >= 0 and math.isfinite(self.seconds) and self.seconds > 0):
            raise ValueError(f"a phase needs a rate and a length, got {self.rate!r}/s for {self.seconds!r} s")


PROFILES: Mapping[str, tuple[float, ...]] = {
    "constant": (1.0,),
    "step": (0.5, 3.0, 0.5),
    "ramp": (0.25, 0.5, 1.0, 2.0, 3.0, 4.0),
    "overload": (0.5, 10.0, 0.5),
}
"""Loads of equally long phases, in multiples of a rate."""


def profile(name: str, *, rate: float, seconds: float) -> list[Phase]:
    """The phases of a named profile.

    Args:
        name: see `PROFILES`.
        rate: requests per second that the multiples refer to.
        seconds: length of each phase.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PROFILES:
        raise ValueError(f"no profile {name!r}; there are {', '.join(PROFILES)}")
    return [Phase(rate * multiple, seconds) for multiple in PROFILES[name]]


def split(samples: Sequence[Sample], phases: Sequence[Phase]) -> list[list[Sample]]:
    """The samples of every phase, by when they were due."""
    parts: list[list[Sample]] = [[] for _ in phases]
    ends, end = [], 0.0
    for phase in phases:
        end += phase.seconds
        ends.append(end)
    for sample in samples:
        place = next((n for n, end in enumerate(ends) if sample.at < end), len(phases) - 1)
        parts[place].append(sample)
    return parts
