from pliant.core import Config
from pliant.search import Axis, Front, Point
from pliant.search.outcome import FAILED, FINISHED, Outcome
from pliant.search.progress import Told, best_told, duration

AXES = (Axis("accuracy", True), Axis("latency_ms", False, "ms", "latency"))


def outcome(accuracy: float, latency: float, seconds: float = 30.0) -> Outcome:
    values = {"accuracy": accuracy, "latency_ms": latency}
    return Outcome(Config({"width:a": int(1000 * latency)}), FINISHED, values, seconds=seconds)


def test_time_left_counts_workers_and_what_is_left() -> None:
    told = Told(AXES, 11, False, workers=2)
    outcomes = [outcome(0.5, 1.0, 10.0)]
    told.trial(outcomes)
    assert told.left(1) == 50.0
    assert (duration(42.2), duration(420), duration(11520)) == ("42 s", "7 min", "3.2 h")


def test_the_best_within_budgets() -> None:
    points = [Point(Config({"width:a": i}), {"accuracy": 0.1 * i, "latency_ms": float(i)}) for i in range(1, 10)]
    assert best_told(Front(points, AXES)) == "best accuracy 0.3 at ¼, 0.5 at ½, 0.9 at all of latency_ms"
    assert best_told(Front(points, AXES[:1])) == "best accuracy 0.9"
    turned = best_told(Front(points, AXES[::-1]))
    assert turned == "best latency_ms 7 at ¼, 5 at ½, 1 at all of accuracy"


def test_failures_are_told(capfd: object) -> None:
    told = Told(AXES, 3, True)
    told.trial([outcome(0.5, 1.0), Outcome(Config({"width:a": 1}), FAILED, problem="objective x is [nan]")])
    err = capfd.readouterr().err  # type: ignore[attr-defined]
    assert err.split()[0] == "2/3"
    assert "failed (objective x is [nan])" in err
    assert "30 s left" not in err
    assert "front 1" in err
