"""Labels: each measured once, in parallel, through kills and torn lines; a search that goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from plait.compression.baselines import random_near
from plait.compression.complexity import Layer, bops
from plait.compression.evaluator import Evaluator, EvaluatorConfig, Fidelity, Labels
from plait.compression.optimiser import Budget
from plait.compression.search import Search, SearchConfig
from plait.spec.errors import UserError
from tests.compression.made_task import SPACE, UNITS, MadeTask

HERE = EvaluatorConfig(processes=0)
LAYERS = [Layer(u.name, 10**8, 0, 0, 0, 64, unit=u.name, cut_by=u.name) for u in UNITS]
BUDGET = [Budget(bops(SPACE, LAYERS), 4.0)]


def policies(count: int, seed: int = 0) -> list:
    return [SPACE.decode(index_D) for index_D in SPACE.sample(np.random.default_rng(seed), count)]


def measured(task: MadeTask) -> list[str]:
    return task.counted.read_text().splitlines()


def searched(labels: Path, task: MadeTask) -> tuple[Search, object]:
    evaluator = Evaluator(task, SPACE.digest, Labels(labels), HERE)
    search = Search(SPACE, evaluator, SearchConfig(labels=30, first=12))
    return search, search.choose(search.learn(BUDGET), BUDGET)


def test_nothing_is_measured_twice(tmp_path):
    task = MadeTask(tmp_path / "counted")
    for _ in range(2):
        evaluator = Evaluator(task, SPACE.digest, Labels(tmp_path / "labels.jsonl"), HERE)
        labels = evaluator.measure([*policies(10), *policies(3)], Fidelity.L1, 0)
        assert [label.policy for label in labels] == [*policies(10), *policies(3)]
    assert len(measured(task)) == 10
    evaluator.measure(policies(10), Fidelity.L2, 0)
    evaluator.measure(policies(10), Fidelity.L1, 1)
    assert (len(measured(task)), evaluator.made) == (30, 20)


def test_processes_give_what_one_gives(tmp_path):
    found = []
    for processes in (0, 2):
        task = MadeTask(tmp_path / f"counted{processes}")
        labels = Labels(tmp_path / f"labels{processes}.jsonl")
        evaluator = Evaluator(task, SPACE.digest, labels, EvaluatorConfig(processes))
        found.append([label.metric for label in evaluator.measure(policies(8), Fidelity.L0, 0)])
        assert len(measured(task)) == 8
    assert found[0] == found[1]


def test_a_torn_line_is_dropped_and_a_damaged_one_refused(tmp_path):
    path = tmp_path / "labels.jsonl"
    task = MadeTask(tmp_path / "counted")
    Evaluator(task, SPACE.digest, Labels(path), HERE).measure(policies(5), Fidelity.L0, 0)
    whole = path.read_text()
    for cut in (1, 40, len(whole.splitlines()[-1])):
        path.write_text(whole[:-cut])
        assert len(Labels(path).found) == 4
        Evaluator(task, SPACE.digest, Labels(path), HERE).measure(policies(5), Fidelity.L0, 0)
        assert len(Labels(path).found) == 5
    assert len(measured(task)) == 8
    path.write_text("nonsense\n" + whole)
    with pytest.raises(UserError, match="line 1 is no label"):
        Labels(path)


def test_a_measurement_without_a_number_is_told_and_the_others_are_kept(tmp_path):
    task = MadeTask(tmp_path / "counted", broken=0.75)
    labels = Labels(tmp_path / "labels.jsonl")
    with pytest.raises(UserError, match=r"gave no number.*smaller rate"):
        Evaluator(task, SPACE.digest, labels, HERE).measure(policies(20), Fidelity.L0, 0)
    good = sum(policy.choice("u0").prune != 0.75 for policy in policies(20))
    assert 0 < good < 20
    assert len(Labels(labels.path).found) == good


def test_two_searches_do_not_write_to_one_file(tmp_path):
    labels = Labels(tmp_path / "labels.jsonl")
    with labels.alone(), pytest.raises(UserError, match="another search"):
        Evaluator(MadeTask(tmp_path / "c"), SPACE.digest, labels, HERE).measure(policies(1), Fidelity.L0, 0)


SCRIPT = """
import sys
from pathlib import Path
from tests.compression.made_task import MadeTask
from tests.compression.test_evaluator import searched
searched(Path(sys.argv[1]), MadeTask(Path(sys.argv[2]), dies_after=int(sys.argv[3])))
"""


@pytest.mark.parametrize("dies_after", [1, 7, 12, 13, 20, 25])
def test_a_search_that_is_killed_goes_on_where_it_was(tmp_path, dies_after):
    """The process ends inside a measurement, which was not made then: it is made again, alone."""
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)])}
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(tmp_path / "labels"),
        str(tmp_path / "counted"),
        str(dies_after),
    ]
    died = subprocess.run(command, env=env, cwd=root, check=False)
    assert died.returncode == 9
    assert len(Labels(tmp_path / "labels").found) == dies_after - 1
    search, chosen = searched(tmp_path / "labels", MadeTask(tmp_path / "counted"))
    _, undisturbed = searched(tmp_path / "other", MadeTask(tmp_path / "other counted"))
    assert chosen == undisturbed
    lines = measured(MadeTask(tmp_path / "counted"))
    assert len(lines) == len(search.score_N) + 1, "only what the kill cut short is measured again"
    assert len(set(lines)) == len(search.score_N)


def test_the_search_finds_a_good_policy_within_its_budget(tmp_path):
    task = MadeTask(tmp_path / "counted")
    search, chosen = searched(tmp_path / "labels", task)
    assert len(search.score_N) <= 30
    assert bops(SPACE, LAYERS)(SPACE.z_of(SPACE.encode(chosen.policy)[None]))[0][0] <= 4.0
    rng = np.random.default_rng(0)
    others = random_near(SPACE, BUDGET, 30, rng)
    best = max(task.measure(SPACE.decode(index_D), Fidelity.L1, 0)["score"] for index_D in others)
    assert chosen.measured > best
    assert abs(chosen.predicted - chosen.measured) < 3


def test_labels_can_be_read_by_others(tmp_path):
    path = tmp_path / "labels.jsonl"
    Evaluator(MadeTask(tmp_path / "c"), SPACE.digest, Labels(path), HERE).measure(policies(1), Fidelity.L0, 3)
    told = json.loads(path.read_text())
    assert (told["v"], told["fidelity"], told["seed"], told["space"]) == (1, "L0", 3, SPACE.digest)
    assert told["policy"]["units"].keys() == {"u0", "u1", "u2", "u3"}
    assert told["seconds"] >= 0
