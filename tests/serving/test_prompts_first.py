"""With `prompts_first`, prompts have steps of their own, and rows that decode wait for them."""

from plait.serving.batcher import BatcherConfig
from plait.serving.manager import GlobalManager, ManagerConfig
from plait.spec.event import Arrived, StepDone, WorkerUp
from plait.spec.request import Request
from plait.spec.step import Step


def steps(commands):
    return [command for command in commands if isinstance(command, Step)]


def test_prompts_are_whole_and_alone_and_rows_wait():
    batcher = BatcherConfig(step_tokens=100, prompts_first=True, depth=1)
    core = GlobalManager(ManagerConfig(batcher=batcher))
    core.handle(WorkerUp(0, 0, 4096), 1)
    (first,) = steps(core.handle(Arrived(Request(0, 250, 8)), 2))
    assert [row.count for row in first.rows] == [250], "a prompt is not cut"
    for id in (1, 2, 3):
        core.handle(Arrived(Request(id, 45, 8)), 2 + id)
    (second,) = steps(core.handle(StepDone(first.id, (1,)), 10))
    assert [(row.request, row.count) for row in second.rows] == [(1, 45), (2, 45)]
    assert not second.again
    (third,) = steps(core.handle(StepDone(second.id, (1, 1)), 11))
    assert [row.request for row in third.rows] == [3]
    (fourth,) = steps(core.handle(StepDone(third.id, (1,)), 12))
    assert sorted([*fourth.again, *(row.request for row in fourth.rows)]) == [0, 1, 2, 3]
    assert not any(row.given for row in fourth.rows)
