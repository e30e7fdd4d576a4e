"""`Forecast`: who would wait too long for a first token is refused at once."""

import pytest

from plait.serving.forecast import Forecast
from plait.serving.live import Live, Seat
from plait.spec.cluster import Role
from plait.spec.request import EndReason, Request
from plait.spec.step import Row, Step
from tests.serving.cell import Cell


def test_the_speed_is_that_of_the_steps_answered_lately():
    forecast = Forecast()
    seats = [Seat(0, 1), Seat(1, 1), Seat(2, 1, Role.DECODE)]
    assert forecast.first_token_ns(10, [], seats) == 0
    forecast.issued(Step(0, (0,), (Row(1, 0, 100),)), 0)
    forecast.issued(Step(1, (0,), (Row(2, 0, 50),)), 0)
    forecast.answered(0, 0, 1000)
    assert forecast.first_token_ns(10, [], seats) == pytest.approx(100)
    forecast.answered(1, 0, 1500)  # it began only when the first was done: the same speed
    assert forecast.first_token_ns(10, [], seats) == pytest.approx(100)
    waiting = [Live(Request(number, 30, 1), number) for number in range(4)]
    assert forecast.first_token_ns(10, waiting, seats) == pytest.approx(10 * (120 / 2 + 10))
    for step in range(2, 60):
        forecast.issued(Step(step, (0,), (Row(step, 0, 10),)), 1500 + step * 200)
        forecast.answered(step, 0, 1500 + step * 200 + 200)
    assert forecast.first_token_ns(10, [], seats) == pytest.approx(200, rel=0.1)


def test_late_requests_are_refused_and_the_others_are_not():
    cell = Cell(1000, ttft_ns=1000, step_tokens=10, depth=1, max_rows=4)
    first = cell.arrive(10, 2)
    cell.now += 100
    cell.answer()  # 10 ns a token
    taken = [cell.arrive(20, 2) for _ in range(4)]
    late = cell.arrive(50, 2)
    assert cell.reason(late) is EndReason.LATE
    assert cell.ends[late].tokens == 0
    cell.run()
    assert {cell.reason(request) for request in (first, *taken)} == {EndReason.LENGTH}
    assert cell.arrive(50, 2) not in cell.ends, "with nothing ahead of it the same prompt is in time"


def test_without_an_objective_nobody_is_late():
    cell = Cell(1000, step_tokens=1, depth=1)
    requests = [cell.arrive(40, 2) for _ in range(10)]
    cell.run()
    assert {cell.reason(request) for request in requests} == {EndReason.LENGTH}
