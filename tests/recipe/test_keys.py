"""Keys of a section are the options of its verb, checked as the command line checks them."""

import re
from pathlib import Path

import pytest

from plait.cli.compress import compression
from plait.cli.plan import planning
from plait.cli.serve import serving
from plait.planner.search import Policy
from plait.recipe.keys import Keys
from plait.spec.errors import UserError

FILE = Path("somewhere/recipe.yaml")
COMPRESS = Keys("compress", compression, ("out",), ("model",))
PLAN = Keys("plan", planning, ("out",), ("model",))
SERVE = Keys("serve", serving, ("api_key",), ("model",), {"requests": int})
WHOLE = {"cluster": "c.yaml", "trace": "t.csv", "slo": "ttft=1s,tpot=1s", "rate": 2}


def test_keys_are_spelled_as_options_and_read_as_parameters():
    told = SERVE.read({"served_model_name": "mine", "max_rows": 8, "exact": True, "requests": 3}, FILE)
    assert told.options == {"name": "mine", "max_rows": 8, "exact": True, "requests": 3}
    told = PLAN.read(WHOLE | {"format": "mooncake", "policy": "pools"}, FILE)
    assert told.options["form"] == "mooncake"
    assert told.options["policy"] is Policy.POOLS
    assert told.json["policy"] == "pools"


def test_paths_start_from_the_recipe_and_names_stay_names(tmp_path):
    (tmp_path / "model").mkdir()
    told = PLAN.read(WHOLE | {"model": "model", "cost": "roofline"}, tmp_path / "recipe.yaml")
    assert told.options["cluster"] == tmp_path / "c.yaml"
    assert told.options["model"] == str(tmp_path / "model")
    assert told.options["cost"] == "roofline"
    assert told.json["cluster"] == "c.yaml"
    assert told.files == {"model": tmp_path / "model"}


def test_numbers_may_stand_for_text():
    told = COMPRESS.read({"budget": ["kv=0.6"], "train": "a.txt", "test": "b.txt", "kv_bits": 8}, FILE)
    assert told.options["kv_bits"] == "8"


@pytest.mark.parametrize(
    ("keys", "raw", "says"),
    [
        (COMPRESS, {"budgets": ["size=0.4"]}, "field compress.budgets: did you mean compress.budget?"),
        (SERVE, {"instance": 2}, "did you mean serve.instances?"),
        (SERVE, {"out": "here"}, "unknown field serve.out"),
        (COMPRESS, {"budget": ["size=0.4"], "test": "b.txt"}, "compress.train: field required"),
        (
            COMPRESS,
            {"budget": "size=0.4", "train": "a", "test": "b"},
            "compress.budget: input should be a .*list",
        ),
        (PLAN, WHOLE | {"finalists": 0}, "plan.finalists: .*greater than or equal to 1"),
        (PLAN, WHOLE | {"policy": "best"}, "plan.policy: .*'colocated'"),
        (SERVE, {"port": 70_000}, "serve.port: .*less than or equal to 65535"),
        (SERVE, ["port"], "serve must hold keys"),
    ],
)
def test_what_the_verb_does_not_take_is_refused_by_its_place(keys, raw, says):
    with pytest.raises(UserError) as refusal:
        keys.read(raw, FILE)
    assert re.search(says, str(refusal.value))
