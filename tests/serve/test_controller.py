"""Every rule of the controller, with times written by hand; and what must hold for any traffic."""

import math
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pliant_runtime.serving.controller import Controller, Settings, Shed, Ticket, policy
from pliant_runtime.serving.table import Correction, Table

SLO = Settings(slo_s=0.05)


def let_in(control: Controller, now: float, **options: float) -> Ticket:
    found = control.arrive(now, **options)  # type: ignore[arg-type]
    assert isinstance(found, Ticket), found
    return found


def refused(control: Controller, now: float, **options: float) -> Shed:
    found = control.arrive(now, **options)  # type: ignore[arg-type]
    assert isinstance(found, Shed)
    return found


# -- the table --------------------------------------------------------------------------------------------------------


def test_cost_lies_on_the_line_between_sizes_and_grows_in_proportion_beyond(matmul: Table) -> None:
    assert matmul.cost(0, 1) == pytest.approx(0.001)
    assert matmul.cost(0, 32) == pytest.approx(0.003)
    assert matmul.cost(0, 3) == pytest.approx((matmul.cost(0, 2) + matmul.cost(0, 4)) / 2)
    assert matmul.cost(0, 64) == pytest.approx(0.006)


def test_batches_are_as_large_as_they_gain(conv: Table, matmul: Table) -> None:
    assert [conv.batch_rows(number) for number in range(len(conv))] == [1] * 6
    assert matmul.batch_rows(0) == 32
    assert matmul.batch_rows(1, most_seconds=0.005) == 8  # 16 rows would take 5.9 ms


def test_a_noisy_table_is_made_monotone() -> None:
    table = Table.monotone((1, 2, 4), [(0.003, 0.002, 0.004)], quality=(1.0,))
    assert table.seconds == ((0.002, 0.002, 0.004),)


def test_the_ladder_leaves_out_what_is_slower_and_no_better() -> None:
    table = Table((1,), ((0.004,), (0.001,), (0.002,), (0.003,)), (0.9, 0.7, 0.6, 0.8))
    assert table.ladder == (1, 3, 0)
    assert table.dynamic_range == pytest.approx(4.0)


def test_a_table_survives_json(conv: Table) -> None:
    assert Table.from_dict(conv.to_dict()) == conv


@pytest.mark.parametrize(
    ("rows", "seconds", "quality", "said"),
    [
        ((2, 4), ((1.0, 2.0),), (1.0,), "ascend from 1"),
        ((1, 2), ((1.0,),), (1.0,), "2 times"),
        ((1,), ((1.0,),), (1.0, 2.0), "as many qualities"),
        ((1,), ((0.0,),), (1.0,), "positive"),
        ((1,), ((math.nan,),), (1.0,), "positive"),
    ],
)
def test_a_wrong_table_is_refused(rows: tuple[int, ...], seconds: object, quality: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Table(rows, seconds, quality)  # type: ignore[arg-type]


def test_the_correction_is_time_taken_over_time_expected() -> None:
    correction = Correction()
    assert (correction.mean, correction.cautious(0.02)) == (1.0, 0.02)
    for step in range(400):  # nineteen of twenty short batches are untouched; the twentieth waits for a stolen slice
        correction.observe(0.0042 if step % 20 == 0 else 0.0002, 0.0002, step * 1e-4)
    # A mean of ratios that bounds each ratio to four means would say 1.2.
    assert correction.mean == pytest.approx(2.0, rel=0.05)


def test_the_deviation_grows_with_the_root_of_the_wait() -> None:
    correction = Correction()
    for step in range(1000):
        correction.observe((0.001, 0.003)[step % 2], 0.002, step * 0.002)
    short, long = (correction.cautious(work) - correction.mean * work for work in (0.002, 0.032))
    assert short == pytest.approx(2 * 0.001, rel=0.1)
    assert long == pytest.approx(4 * short, rel=0.01)


def test_what_was_learnt_fades_and_a_freak_counts_little() -> None:
    correction = Correction()
    correction.observe(60.0, 0.002, 60.0)  # the machine slept
    assert correction.mean < 20
    for step in range(100):
        correction.observe(0.002, 0.002, 60.0 + step * 0.002)
    assert correction.mean < 1.6
    correction.observe(0.002, 0.002, 80.0)
    assert correction.mean == pytest.approx(1.0, abs=1e-3)


# -- choosing ---------------------------------------------------------------------------------------------------------


def test_idle_takes_the_largest(conv: Table) -> None:
    control = Controller(conv, SLO)
    let_in(control, 0.0)
    work = control.next_batch(0.0)
    assert work is not None
    assert work.subnet == 5


def test_a_long_queue_takes_the_largest_that_drains_in_time(conv: Table) -> None:
    # 20 requests due within .6 * 50 ms less 1 ms of overhead = 29 ms: 20 * 1.0 ms fits, 20 * 2.0 ms does not.
    # The long window of the rate keeps the second rule out of it.
    control = Controller(conv, Settings(slo_s=0.05, rate_window_s=100.0))
    for _ in range(20):
        let_in(control, 0.0)
    work = control.next_batch(0.0)
    assert work is not None
    assert work.subnet == 2


def test_the_arrival_rate_rules_sizes_out_and_what_time_is_left_goes_to_the_next(conv: Table) -> None:
    control = Controller(conv, SLO)
    chosen = []
    for step in range(1200):  # 400 per second: 2 ms keep it busy 0.8 times, 3.5 ms 1.4 times
        now = step / 400
        let_in(control, now)
        work = control.next_batch(now)
        assert work is not None
        control.done(work, work.expected)
        chosen.append(work.subnet)
    assert control.rate(now) == pytest.approx(400, rel=0.02)
    assert [control.keeps_up(number, now) for number in range(6)] == [True] * 4 + [False] * 2
    later = chosen[400:]
    assert set(later) == {3, 4}
    busy = sum(conv.cost(number, 1) for number in later) / (len(later) / 400)
    assert busy == pytest.approx(0.95, abs=0.02)  # rho, and not 0.8


def test_the_rate_is_forgotten_in_silence(conv: Table) -> None:
    control = Controller(conv, SLO)
    for step in range(600):
        let_in(control, step / 400)
        control.done(control.next_batch(step / 400), 1e-4)  # type: ignore[arg-type]
    let_in(control, 5.0)
    assert control.next_batch(5.0).subnet == 5  # type: ignore[union-attr]


def test_a_slow_machine_takes_smaller_ones(conv: Table) -> None:
    def chosen(ratio: float) -> int:
        control = Controller(conv, Settings(slo_s=0.05, rate_window_s=100.0))
        for _ in range(100):
            control.correction.observe(ratio * 0.01, 0.01, 0.0)
        for _ in range(6):
            let_in(control, 0.0)
        return control.next_batch(0.0).subnet  # type: ignore[union-attr]

    assert chosen(1.0) == 4  # 6 * 3.5 ms = 21 ms
    assert chosen(2.0) == 3  # 6 * 2 ms * 2 = 24 ms


def test_up_waits_and_down_does_not(conv: Table) -> None:
    control = Controller(conv, Settings(slo_s=0.05, up_hold_s=1.0, rate_window_s=0.01))

    def serve(now: float) -> int:
        let_in(control, now)
        work = control.next_batch(now)
        assert work is not None
        control.done(work, work.expected)
        return work.subnet

    assert [serve(0.0), serve(0.5), serve(1.0)] == [0, 0, 1]  # the first sight of room starts the hold
    assert [serve(2.0), serve(3.0), serve(4.0), serve(5.0)] == [2, 3, 4, 5]
    for _ in range(40):
        let_in(control, 6.0)
    assert control.next_batch(6.0).subnet == 1  # type: ignore[union-attr]


def test_a_batch_holds_what_waits_up_to_the_size_that_gains(matmul: Table) -> None:
    control = Controller(matmul, Settings(slo_s=0.1))
    for _ in range(40):
        let_in(control, 0.0)
    work = control.next_batch(0.0)
    assert work is not None
    assert (work.rows, control.queued_rows) == (32, 8)


def test_batches_are_shorter_on_a_slow_machine() -> None:
    table = Table((1, 8, 32), ((0.004, 0.006, 0.012),), (1.0,))

    def batch(slow: float) -> tuple[int, int]:
        control = Controller(table, Settings(slo_s=0.05))  # a quarter is 12.5 ms, an eighth 6.25 ms
        for step in range(100):
            let_in(control, 0.01 * step)
            work = control.next_batch(0.01 * step)
            assert work is not None
            control.done(work, slow * work.expected)
        for _ in range(4):
            control.arrive(1.0, 8)
        work = control.next_batch(1.0)
        assert work is not None
        return work.rows, control.queued_rows

    assert batch(1.0) == (32, 0)
    assert batch(2.0) == (8, 16)  # the fourth was not let in


def test_no_batch_without_a_free_lane(conv: Table) -> None:
    control = Controller(conv, Settings(slo_s=0.05, lanes=2))
    for _ in range(3):
        let_in(control, 0.0)
    first, second = control.next_batch(0.0), control.next_batch(0.0)
    assert first is not None
    assert second is not None
    assert control.next_batch(0.0) is None
    control.done(first, 0.001)
    assert control.next_batch(0.001) is not None


# -- the door ---------------------------------------------------------------------------------------------------------


def test_the_door_closes_where_the_smallest_is_too_late(conv: Table) -> None:
    control = Controller(conv, SLO)
    admitted = 0
    while isinstance(found := control.arrive(0.0), Ticket):
        admitted += 1
    # .9 * 50 ms less 1 ms of overhead, at 0.2 ms each
    assert admitted == 220
    assert found.retry_after == 1
    assert "the promise is 50 ms" in found.reason


def test_retry_after_is_the_time_the_queue_takes(conv: Table) -> None:
    control = Controller(conv, Settings(slo_s=10.0))
    while isinstance(found := control.arrive(0.0, 1000), Ticket):
        pass
    assert found.retry_after == 10


def test_a_request_that_can_never_be_in_time_is_refused_for_good(conv: Table) -> None:
    assert refused(Controller(conv, SLO), 0.0, rows=1000).retry_after is None


def test_a_deadline_of_its_own_counts(conv: Table) -> None:
    control = Controller(conv, SLO)
    for _ in range(100):
        let_in(control, 0.0)  # 20 ms at the smallest
    refused(control, 0.0, promise_s=0.015)
    let_in(control, 0.0, promise_s=0.03)
    assert let_in(control, 0.0, promise_s=60.0).promise == 0.05  # never later than the server's own


def test_a_pinned_sub_network_answers_and_nobody_joins(conv: Table) -> None:
    control = Controller(conv, SLO)
    let_in(control, 0.0, pin=4)
    let_in(control, 0.0)
    work = control.next_batch(0.0)
    assert work is not None
    assert (work.subnet, len(work.tickets)) == (4, 1)


def test_pinned_work_counts_at_its_own_cost(conv: Table) -> None:
    control = Controller(conv, SLO)
    for _ in range(8):
        let_in(control, 0.0, pin=5)  # 43.2 ms
    refused(control, 0.0, pin=5)
    let_in(control, 0.0)


def test_order_is_kept(conv: Table) -> None:
    control = Controller(conv, SLO)
    tickets = [let_in(control, 0.0, **({"pin": pin} if pin is not None else {})) for pin in (None, 2, None, 2)]
    order = []
    while (work := control.next_batch(0.0)) is not None:
        order += [ticket.number for ticket in work.tickets]
        control.done(work, work.expected)
    assert order == [ticket.number for ticket in tickets]


def test_a_correction_gone_wild_cannot_lock_the_door(conv: Table) -> None:
    control = Controller(conv, SLO)
    for _ in range(100):
        control.correction.observe(1e9, 0.001, 0.0)
    let_in(control, 0.0)
    assert control.next_batch(0.0) is not None


def test_only_lasting_lag_closes_the_door(conv: Table) -> None:
    control = Controller(conv, SLO)
    control.observe_lag(0.1)
    control.observe_lag(0.1)
    let_in(control, 0.0)
    control.observe_lag(0.1)
    assert control.lag == pytest.approx(0.1)
    refused(control, 0.0)
    control.observe_lag(0.0)
    let_in(control, 0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"rows": 0}, "at least one row"), ({"pin": 6}, "0 to 5"), ({"promise_s": 0.0}, "in the future")],
)
def test_wrong_requests_are_errors(conv: Table, options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Controller(conv, SLO).arrive(0.0, **options)


@pytest.mark.parametrize("wrong", [{"slo_s": 0.0}, {"slo_s": math.inf}, {"safety": 1.5}, {"rho": 0.0}, {"lanes": 0}])
def test_wrong_settings_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Settings(**({"slo_s": 0.05} | wrong))  # type: ignore[arg-type]


def test_the_other_policies(conv: Table) -> None:
    def first(name: str) -> list[int]:
        control = Controller(conv, SLO, policy(name))
        found = []
        for _ in range(3):
            let_in(control, 0.0)
            work = control.next_batch(0.0)
            assert work is not None
            control.done(work, work.expected)
            found.append(work.subnet)
        return found

    assert (first("largest"), first("smallest"), first("round_robin")) == ([5] * 3, [0] * 3, [0, 1, 2])
    with pytest.raises(ValueError, match="there are adaptive"):
        policy("best")


# -- any traffic ------------------------------------------------------------------------------------------------------

EVENT = st.tuples(
    st.floats(0, 0.02),  # time since the last
    st.integers(1, 40),  # rows
    st.one_of(st.none(), st.integers(0, 1)),  # pin
    st.floats(0.5, 6.0),  # how much slower than the table the batch is
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENT, max_size=60))
def test_whatever_comes_everybody_let_in_is_answered_once_and_in_order(matmul: Table, events: list[tuple]) -> None:  # type: ignore[type-arg]
    control, now = Controller(matmul, SLO), 0.0
    admitted, answered = [], []
    for gap, rows, pin, slow in events:
        now += gap
        found = control.arrive(now, rows, pin=pin)
        if isinstance(found, Ticket):
            admitted.append(found.number)
        if (work := control.next_batch(now)) is not None:
            assert all(ticket.pin in (None, work.subnet) for ticket in work.tickets)
            answered += [ticket.number for ticket in work.tickets]
            control.done(work, work.expected * slow)
    while (work := control.next_batch(now)) is not None:
        answered += [ticket.number for ticket in work.tickets]
        control.done(work, work.expected)
    assert answered == admitted
    assert control.idle
    assert control.queued_rows == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 0.01), min_size=1, max_size=150))
def test_on_a_machine_as_measured_nobody_let_in_is_late(conv: Table, gaps: list[float]) -> None:
    from pliant_runtime.serving.simulate import simulate
    from pliant_runtime.serving.trace import ANSWERED

    times = list(accumulate(gaps))
    samples = simulate(Controller(conv, SLO), times)
    assert len(samples) == len(times)
    assert all(sample.latency <= 0.05 for sample in samples if sample.outcome == ANSWERED)
