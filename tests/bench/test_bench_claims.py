"""Bench scripts keep their contract: a table, then a JSON object, and an exit code that says the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

SCRIPT = """
import claim
options = claim.arguments(__doc__)
parts = [claim.at_most("low", {low}, 5), claim.at_least("high", 9, 5), claim.reported("seen", 3, (2, 4))]
claim.finish("contract", claim.together("all of it", parts), options)
"""


@pytest.mark.parametrize(("low", "held"), [(5, 3), (6, 2)])
def test_the_last_line_and_the_exit_code_agree(low, held):
    command = [sys.executable, "-c", SCRIPT.format(low=low), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH, check=False)
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["value"], last["bar"], last["holds"]) == (held, 3, held == 3)
    assert [part["holds"] for part in last["parts"]] == [low == 5, True, True]
    assert last["parts"][2]["interval"] == [2, 4]
    assert done.returncode == (0 if held == 3 else 1), done.stderr
    assert "all of it" in done.stdout.splitlines()[0]


@pytest.mark.slow
def test_the_schedulers_price_is_measured():
    """Whether it is within its bars is for a quiet machine to say; here it must be measured and told."""
    command = [sys.executable, str(BENCH / "scheduler_overhead.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == (0 if last["holds"] else 1), done.stderr
    assert len(last["parts"]) == last["bar"]
    values = {part["claim"]: part["value"] for part in last["parts"]}
    assert values["requests running while timed, at least"] >= 1000
    assert values["requests waiting while timed, at least"] >= 1000
    assert all(value > 0 for value in values.values())
