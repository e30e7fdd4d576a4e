"""A run does what is not done, in order, and nothing twice. Stages here write a word and need no model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plait.recipe.forecast import Forecast, Pace
from plait.recipe.provenance import FILE, Provenance, hash_of
from plait.recipe.run import Run, Standing
from plait.recipe.stage import Made
from plait.recipe.story import Story
from plait.spec.errors import EngineFailure, UserError


@dataclass
class Word:
    """Adds a word to what the stage before left, in two steps; the first of them is kept."""

    name: str
    word: str
    breaks: bool = False
    slack: int = 0
    """May be changed on the way."""
    source: Path | None = None
    refines: frozenset[str] = frozenset({"slack"})
    result: str = "word.txt"
    log: list[str] = field(default_factory=list)

    @property
    def told(self) -> Mapping[str, Any]:
        return {"word": self.word, "slack": self.slack, "seed": 7}

    def inputs(self, made: Made) -> dict[str, Path]:
        found = {} if made.model is None else {"model": Path(made.model)}
        return found | ({} if self.source is None else {"source": self.source})

    def forecast(self, made: Made, pace: Pace) -> Forecast:
        if not self.word:
            raise UserError("a word is needed", "word")
        return Forecast("a word", 1, 2.0)

    def expected(self, made: Made) -> Made:
        return made

    def left(self, made: Made, folder: Path) -> Made:
        return Made(str(folder / self.result))

    def run(self, made: Made, folder: Path) -> Mapping[str, Any]:
        half = folder / "half.txt"
        self.log.append("goes on" if half.exists() else "begins")
        before = "" if made.model is None else Path(made.model).read_text()
        half.write_text(before)
        if self.breaks:
            raise EngineFailure("a worker is gone")
        (folder / self.result).write_text(half.read_text() + self.word)
        return {"letters": len(self.word)}


def run(out: Path, *stages: Word) -> list[list[str]]:
    """Run a story; what each stage did."""
    results = list(Run(Story(out / "recipe.yaml", stages), out).go(lambda line: None))
    assert results == [out / stage.name / stage.result for stage in stages]
    return [stage.log for stage in stages]


def standings(out: Path, *stages: Word) -> list[Standing]:
    return [each.standing for each in Run(Story(out / "recipe.yaml", stages), out).outlook(Pace())]


def test_what_is_done_is_not_done_again(tmp_path):
    assert run(tmp_path, Word("align", "a"), Word("plan", "b")) == [["begins"], ["begins"]]
    assert (tmp_path / "plan" / "word.txt").read_text() == "ab"
    assert run(tmp_path, Word("align", "a"), Word("plan", "b")) == [[], []]
    assert standings(tmp_path, Word("align", "a"), Word("plan", "b")) == [Standing.DONE] * 2


def test_a_changed_stage_and_all_after_it_run_again(tmp_path):
    run(tmp_path, Word("align", "a"), Word("compress", "b"), Word("plan", "c"))
    changed = Word("align", "a"), Word("compress", "B"), Word("plan", "c")
    assert standings(tmp_path, *changed) == [Standing.DONE, Standing.CHANGED, Standing.CHANGED]
    assert run(tmp_path, *changed) == [[], ["begins"], ["begins"]]
    assert (tmp_path / "plan" / "word.txt").read_text() == "aBc"


def test_what_another_recipe_left_is_kept_and_taken_back(tmp_path):
    run(tmp_path, Word("align", "a"), Word("plan", "b"))
    run(tmp_path, Word("align", "A"), Word("plan", "b"))
    assert len(list((tmp_path / "old").iterdir())) == 2
    assert run(tmp_path, Word("align", "a"), Word("plan", "b")) == [[], []]
    assert (tmp_path / "plan" / "word.txt").read_text() == "ab"


def test_a_changed_file_that_is_read_is_a_change(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("one")
    run(tmp_path, Word("align", "a", source=source))
    source.write_text("two")
    assert run(tmp_path, Word("align", "a", source=source)) == [["begins"]]


def test_an_interrupted_stage_goes_on(tmp_path):
    with pytest.raises(EngineFailure):
        run(tmp_path, Word("align", "a"), Word("plan", "b", breaks=True))
    assert standings(tmp_path, Word("align", "a"), Word("plan", "b")) == [Standing.DONE, Standing.BEGUN]
    assert run(tmp_path, Word("align", "a"), Word("plan", "b")) == [[], ["goes on"]]


def test_a_key_that_refines_goes_on_where_the_stage_was(tmp_path):
    run(tmp_path, Word("compress", "a"), Word("plan", "b"))
    assert run(tmp_path, Word("compress", "a", slack=1), Word("plan", "b")) == [["goes on"], ["begins"]]


def test_a_result_that_was_altered_is_made_again(tmp_path):
    run(tmp_path, Word("align", "a"))
    (tmp_path / "align" / "word.txt").write_text("forged")
    assert run(tmp_path, Word("align", "a")) == [["goes on"]]
    assert (tmp_path / "align" / "word.txt").read_text() == "a"


def test_a_provenance_says_where_a_result_comes_from(tmp_path):
    run(tmp_path, Word("align", "a"), Word("plan", "b"))
    told = json.loads((tmp_path / "plan" / FILE).read_text())
    first = Provenance.load(tmp_path / "align")
    assert first is not None
    assert told["parents"] == {"align": first.digest}
    assert told["inputs"] == {"model": hash_of(tmp_path / "align" / "word.txt")}
    assert told["seed"] == 7
    assert told["metrics"] == {"letters": 1}
    assert {"plait", "python", "numpy"} <= told["versions"].keys()
    assert len({told["recipe_sha256"], told["digest"], told["result_sha256"]}) == 3


def test_a_dry_run_refuses_by_stage_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="plan: a word is needed"):
        standings(tmp_path, Word("align", "a"), Word("plan", ""))
    assert standings(tmp_path, Word("align", "a")) == [Standing.NEW]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["notes.txt", FILE])
def test_a_folder_that_no_recipe_wrote_is_left_alone(tmp_path, name):
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / name).write_text("mine")
    with pytest.raises(UserError, match="remove"):
        run(tmp_path, Word("align", "a"))
    assert (tmp_path / "align" / name).read_text() == "mine"
