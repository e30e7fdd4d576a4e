"""Planning RLHF: layouts fit, ledgers add up, fused iterations take less, and pictures are whole."""

from dataclasses import replace
from itertools import pairwise

import pytest

from plait.planner.cluster import Cluster
from plait.planner.rlhf_job import RlhfJob, read_job
from plait.planner.rlhf_layout import (
    MEMORY,
    Machine,
    best_drawing,
    best_training,
    drawings,
    serial_step_s,
    training,
    trainings,
)
from plait.planner.rlhf_plan import Intra, RlhfPlan
from plait.rlhf.core import SERIAL
from plait.search.pipelines.builders import alone_s, serial_s
from plait.search.pipelines.find import ScheduleSearch
from plait.spec.cluster import Device, Link
from plait.spec.errors import UserError
from plait.workload.gantt import Gantt, Seen

HOPPER = Device("hopper", 989e12, 2e12, 80 * 1024**3, step_ns=1_000_000, efficiency=0.5)
JOB = RlhfJob(actor="llama-33b", critic="llama-13b", samples=128, mini_batches=8, longest=256, median=60)
SEARCH = ScheduleSearch(moves=20_000)


def machine(nodes=8, device=HOPPER):
    return Machine(Cluster(nodes, 8, device, Link(300e9, 500), Link(200e9, 20_000)))


@pytest.fixture(scope="module")
def plan():
    there = machine()
    cut = training(JOB, there, (8, 4))
    return RlhfPlan(JOB, there, best_drawing(JOB, there), cut)


def test_layouts_fit_and_the_best_is_chosen():
    there = machine()
    for each in drawings(JOB, there):
        assert each.instances * each.tp == there.cluster.devices
        assert each.model.slots * JOB.shapes[0].kv_bytes_per_token < MEMORY * each.tp * HOPPER.memory_bytes
    found = trainings(JOB, there)
    for each in found:
        assert each.blocks * max(each.stages) == there.cluster.nodes
    assert serial_step_s(best_training(JOB, there, fused=False)) == min(map(serial_step_s, found))
    assert sum(best_training(JOB, there, fused=True).stages) >= 2


def test_the_form_of_serial_training_is_that_of_its_schedules():
    for each in trainings(JOB, machine()):
        if each.blocks == 1 and len({model.name for model in each.problem.models}) == 2:
            form_s = serial_step_s(each) - each.optimiser_s
            assert form_s >= serial_s(each.problem) * 0.98


def test_a_cluster_without_room_is_refused():
    small = replace(HOPPER, memory_bytes=2 * 1024**3)
    with pytest.raises(UserError, match="do not fit"):
        drawings(JOB, machine(device=small))
    with pytest.raises(UserError, match="cannot be trained"):
        trainings(JOB, machine(device=small))


def test_fused_iterations_take_less(plan):
    samples = plan.samples()
    serial, fused = plan.rollout(samples, SERIAL), plan.rollout(samples, plan.tuned().tail)
    base = plan.ledger(serial, plan.step(Intra.SERIAL))
    both = plan.ledger(fused, plan.step(Intra.SEARCHED, SEARCH))
    assert both.total_s < base.total_s
    assert both.inference_s < base.inference_s
    assert base.training_s == pytest.approx(8 * serial_s(plan.training.problem))
    assert 0 < both.other < 0.2
    parts = (base.weights_s, base.generation_s, base.inference_s, base.training_s, base.gradients_s)
    assert base.total_s == pytest.approx(sum(parts) + base.optimiser_s)


def test_weights_cost_what_the_critic_does_not_hide(plan):
    serial, fused = plan.step(Intra.SERIAL), plan.step(Intra.SEARCHED, SEARCH)
    ready_s = alone_s(plan.training.problem)["actor"] + plan.training.reduce_s[0] + plan.training.optimiser_s
    for step in (serial, fused):
        apart_s = max(serial.total_s, ready_s + plan.gather_s + plan.training.reduce_s[1])
        last_s = min(step.total_s + plan.gather_s, max(step.total_s, apart_s))
        assert plan.weights_s(step) == pytest.approx(last_s - step.total_s)
        assert plan.trained_s(step) == pytest.approx(7 * step.total_s + last_s)
    assert plan.weights_s(serial) < plan.gather_s  # some of it is hidden
    nodes, weight_bytes = 8, JOB.shapes[0].weight_bytes
    assert plan.gather_s == pytest.approx(weight_bytes * 7 / nodes / 200e9, rel=0.01)


@pytest.mark.parametrize("intra", list(Intra))
def test_every_way_to_train_is_drawn(plan, intra):
    step = plan.step(intra, SEARCH)
    bars = list(plan.bars(step))
    assert max(end_s for *_, end_s in bars) == pytest.approx(step.pipeline_s)
    assert {rank for rank, *_ in bars} == set(range(8))
    serial_s_ = plan.step(Intra.SERIAL)
    assert step.total_s <= serial_s_.total_s


def test_a_gantt_accounts_for_all_time(plan, tmp_path):
    drawn = Gantt()
    seen = Seen(drawn)
    times = plan.rollout(plan.samples(), plan.tuned().tail, [seen.see])
    seen.close()
    assert drawn.end_ns == times.scored_ns
    assert sum(drawn.shares().values()) == pytest.approx(1.0)
    assert drawn.shares()["idle"] >= 0
    for bars in ([bar for bar in drawn.bars if bar.row == row] for row in drawn.rows()):
        ordered = sorted(bars, key=lambda bar: bar.begin_ns)
        assert all(one.end_ns <= two.begin_ns for one, two in pairwise(ordered))
    for name in ("a.csv", "a.txt", "a.json"):
        drawn.save(tmp_path / name)
    assert (tmp_path / "a.csv").read_text().startswith("row,kind,begin_ns,end_ns\n")
    assert "instance 0" in (tmp_path / "a.txt").read_text()
    assert '"traceEvents"' in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("actor: llama-13b\n", "critic"),
        ("actor: llama-13b\ncritic: llama-13b\nlongst: 3\n", "did you mean longest"),
        ("actor: llama-13b\ncritic: llama-13b\nsamples: 100\n", "do not divide"),
        ("actor: llama-13b\ncritic: llama-13b\nsigma: 0\n", "above 0"),
        ("- 1\n", "no fields"),
    ],
)
def test_wrong_jobs_are_told_what_is_wrong(tmp_path, text, says):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_job(path)
