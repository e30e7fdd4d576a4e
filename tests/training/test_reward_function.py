"""Users' reward functions in three signatures, and the checker of GSM8K's answers."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from plait.spec.errors import NotFound, UserError
from plait.training.answers import final_answer, gsm8k
from plait.training.reward_function import Answered, adapt, load

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "text"
SAMPLES = [
    Answered("2+2? ", "4", (4,), {"ground_truth": "4", "label": "4", "data_source": "sums"}),
    Answered("3+3? ", "7!", (7, 8), {"ground_truth": "6", "label": "6", "data_source": "sums"}),
]


def trl(prompts, completions, completion_ids, ground_truth, **columns):
    assert columns["data_source"] == ["sums", "sums"]
    return [float(c == t) + len(i) for c, i, t in zip(completions, completion_ids, ground_truth, strict=True)]


def verl(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(solution_str == ground_truth), "source": data_source}


def openrlhf(queries, prompts, labels):
    right = [q == p + t for q, p, t in zip(queries, prompts, labels, strict=True)]
    return {"rewards": torch.tensor(right, dtype=torch.float32), "extra_logs": {}}


def test_three_signatures_give_scores() -> None:
    assert adapt(trl, "f")(SAMPLES) == [2.0, 2.0]
    assert adapt(verl, "f")(SAMPLES) == [1.0, 0.0]
    assert adapt(openrlhf, "f")(SAMPLES) == [1.0, 0.0]


def test_verls_own_layout_of_the_data_and_conversations() -> None:
    nested = Answered(
        [{"role": "user", "content": "2+2?"}],
        [{"role": "assistant", "content": "4"}],
        columns={"reward_model": {"ground_truth": "4"}},
    )
    assert adapt(verl, "f")([nested]) == [1.0]


def test_functions_are_loaded_from_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def short(prompts, completions):\n    return [-len(c) for c in completions]\n")
    assert load(f"{path}:short")(SAMPLES) == [-1.0, -2.0]
    with pytest.raises(NotFound, match="no function 'long'"):
        load(f"{path}:long")
    with pytest.raises(NotFound, match="no file"):
        load(f"{tmp_path / 'other.py'}:short")
    path.write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match="cannot be run: ModuleNotFoundError"):
        load(f"{path}:short")
    with pytest.raises(NotFound, match="gsm8k"):
        load("math")


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0], "1 scores for 2 samples"),
        ([1.0, float("nan")], "nan for sample 1"),
        ([float("inf"), 1.0], "inf for sample 0"),
        ([1.0, None], "None for sample 1"),
        (["a", 1.0], "'a' for sample 0"),
        (1.0, "float: return one number per sample"),
        (None, "NoneType"),
        ({"score": 1.0}, "dict"),
    ],
)
def test_what_is_not_a_score_is_named(returned: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        adapt(lambda prompts, completions: returned, "mine")(SAMPLES)


def test_signatures_and_columns_that_do_not_fit_are_refused() -> None:
    async def later(prompts, completions):
        return []

    with pytest.raises(UserError, match="plain function"):
        adapt(later, "later")
    with pytest.raises(UserError, match=r"takes \(text\): give it TRL's"):
        adapt(lambda text: 0.0, "mine")
    with pytest.raises(UserError, match="needs 'difficulty'"):
        adapt(lambda prompts, completions, difficulty: [0.0, 0.0], "mine")(SAMPLES)
    with pytest.raises(UserError, match="column ground_truth"):
        adapt(verl, "mine")([Answered("a", "b")])
    with pytest.raises(UserError, match="lacks the column label"):
        adapt(trl, "mine")([SAMPLES[0], Answered("a", "b", columns={"ground_truth": "", "data_source": ""})])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 18", 18),
        ("#### 1,234", 1234),
        ("#### $70,000.00", 70000),
        ("####-5", -5),
        ("#### -$5", -5),
        ("#### .5", Decimal("0.5")),
        ("#### 4 no, #### 5.", 5),
        ("the answer is 18", None),
        ("#### none", None),
        ("#### --5", None),
        ("", None),
    ],
)
def test_marked_answers(text: str, answer: int | Decimal | None) -> None:
    assert final_answer(text) == answer


def test_unmarked_answers() -> None:
    assert final_answer("18 eggs, 3 eaten: 15.", marked=False) == 15
    assert final_answer("none", marked=False) is None


@pytest.mark.parametrize("part", ["train", "test"])
def test_gsm8ks_solutions_are_right_and_altered_ones_wrong(part: str) -> None:
    path = DATA / f"gsm8k_{part}.jsonl"
    if not path.exists():
        pytest.skip("GSM8K is not beside the repository (../shared/data/text)")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    solutions = [row["answer"] for row in rows]
    questions = [row["question"] for row in rows]
    assert len(rows) > 1000
    assert gsm8k(questions, solutions, solutions) == [1.0] * len(rows)
    bare = [solution.rpartition("####")[2].strip() for solution in solutions]
    chats = [[{"role": "assistant", "content": solution}] for solution in solutions]
    assert gsm8k(questions, chats, bare) == [1.0] * len(rows)
    assert gsm8k(questions, [solution + "1" for solution in solutions], bare) == [0.0] * len(rows)
    assert gsm8k(questions, [solution.replace("####", "") for solution in solutions], bare) == [0.0] * len(
        rows
    )


def test_the_checker_is_loaded_by_its_name() -> None:
    samples = [
        Answered("q", "so #### 4", columns={"answer": "2+2\n#### 4.0"}),
        Answered("q", "4", columns={"answer": "4"}),
    ]
    assert load("gsm8k")(samples) == [1.0, 0.0]
