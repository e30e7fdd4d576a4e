"""A user's Python function as the source of scores, in the signature of whichever library it was written for.

TRL        f(prompts, completions, **columns) -> one number per sample
verl       f(data_source, solution_str, ground_truth, extra_info=None) -> a number, or {"score": number, ...}
OpenRLHF   f(queries, prompts, labels) -> one number per sample, or {"rewards": numbers, ...}
"""

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from plait.spec.errors import NotFound, UserError
from plait.training.answers import exact, gsm8k

SHIPPED: Mapping[str, Callable[..., Any]] = {"exact": exact, "gsm8k": gsm8k}
"""Functions that a recipe names without a file."""
TRL = frozenset({"prompts", "completions"})
VERL = frozenset({"solution_str", "ground_truth"})
OPENRLHF = frozenset({"queries", "prompts", "labels"})


@dataclass(frozen=True)
class Answered:
    """One sample as a reward function sees it."""

    prompt: Any
    """Text, or a conversation (a list of messages)."""
    completion: Any
    """Text, or a conversation of one message."""
    tokens: tuple[int, ...] = ()
    """Of the completion."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The other columns of the data set's row."""


Score = Callable[[Sequence[Answered]], list[float]]
"""Scores of samples, in their order. Raises UserError for a wrong count or a score that is not finite."""


def load(source: str) -> Score:
    """The function that `FILE.py:NAME`, or the name of one that ships, stands for.

    The file is run as a program of the caller's own.

    Raises:
        NotFound: there is no such file or name.
        UserError: the file cannot be run, or the function's parameters fit none of the signatures.
    """
    path, colon, name = source.rpartition(":")
    if not colon:
        if source not in SHIPPED:
            raise NotFound(f"no reward function {source!r}: give FILE.py:NAME or one of {', '.join(SHIPPED)}")
        return adapt(SHIPPED[source], source)
    found = getattr(_module(Path(path)), name, None)
    if not callable(found):
        raise NotFound(f"{path} has no function {name!r}: check the name after the colon")
    return adapt(found, source)


def adapt(function: Callable[..., Any], name: str) -> Score:
    """The function behind one signature, its results checked. Raises UserError if its parameters fit none."""
    if inspect.iscoroutinefunction(function):
        raise UserError(f"reward function {name} is async: make it a plain function")
    parameters = frozenset(inspect.signature(function).parameters)
    if parameters >= OPENRLHF:
        scores = _openrlhf(function)
    elif parameters >= TRL:
        scores = _trl(function, name)
    elif parameters >= VERL:
        scores = _verl(function, name)
    else:
        raise UserError(
            f"reward function {name} takes ({', '.join(inspect.signature(function).parameters)}): give it "
            "TRL's (prompts, completions, **columns), verl's (data_source, solution_str, ground_truth, "
            "extra_info) or OpenRLHF's (queries, prompts, labels)"
        )
    return lambda samples: _checked(scores(samples), len(samples), name)


def _trl(function: Callable[..., Any], name: str) -> Callable[[Sequence[Answered]], Any]:
    def scores(samples: Sequence[Answered]) -> Any:
        given = {
            "prompts": [sample.prompt for sample in samples],
            "completions": [sample.completion for sample in samples],
            "completion_ids": [list(sample.tokens) for sample in samples],
        }
        for column in samples[0].columns if samples else ():
            given[column] = [_column(sample, column, name) for sample in samples]
        return function(**_accepted(function, given, name))

    return scores


def _openrlhf(function: Callable[..., Any]) -> Callable[[Sequence[Answered]], Any]:
    def scores(samples: Sequence[Answered]) -> Any:
        prompts = [_text(sample.prompt) for sample in samples]
        queries = [prompt + _text(sample.completion) for prompt, sample in zip(prompts, samples, strict=True)]
        labels = [sample.columns.get("label") for sample in samples]
        result = function(queries=queries, prompts=prompts, labels=labels)
        return result.get("rewards") if isinstance(result, Mapping) else result

    return scores


def _verl(function: Callable[..., Any], name: str) -> Callable[[Sequence[Answered]], Any]:
    def score(sample: Answered) -> Any:
        given = {
            "data_source": sample.columns.get("data_source"),
            "solution_str": _text(sample.completion),
            "ground_truth": _truth(sample, name),
            "extra_info": sample.columns.get("extra_info", {}),
        }
        result = function(**_accepted(function, given, name))
        return result.get("score") if isinstance(result, Mapping) else result

    return lambda samples: [score(sample) for sample in samples]


def _truth(sample: Answered, name: str) -> Any:
    """verl keeps it in `reward_model`; a column of its own does as well."""
    if "ground_truth" in sample.columns:
        return sample.columns["ground_truth"]
    nested = sample.columns.get("reward_model")
    if isinstance(nested, Mapping) and "ground_truth" in nested:
        return nested["ground_truth"]
    raise UserError(f"reward function {name} needs a column ground_truth: add it to the data set")


def _column(sample: Answered, column: str, name: str) -> Any:
    if column not in sample.columns:
        raise UserError(
            f"a sample for reward function {name} lacks the column {column}: fill it in every row"
        )
    return sample.columns[column]


def _accepted(function: Callable[..., Any], given: dict[str, Any], name: str) -> dict[str, Any]:
    """What the function takes of it: everything if it takes keywords of any name."""
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        named = parameter.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        if named and parameter.default is inspect.Parameter.empty and parameter.name not in given:
            raise UserError(
                f"reward function {name} needs {parameter.name!r}: add a column of that name to the data set"
            )
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {key: value for key, value in given.items() if key in parameters}


def _checked(result: Any, count: int, name: str) -> list[float]:
    if not isinstance(result, Iterable) or isinstance(result, str | bytes | Mapping):
        raise UserError(
            f"reward function {name} returned {type(result).__name__}: return one number per sample"
        )
    scores = list(result)
    if len(scores) != count:
        raise UserError(
            f"reward function {name} returned {len(scores)} scores for {count} samples: return one per sample"
        )
    return [_number(score, place, name) for place, score in enumerate(scores)]


def _number(score: Any, place: int, name: str) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"reward function {name} returned {score!r} for sample {place}: return a number"
        ) from error
    if not math.isfinite(number):
        raise UserError(
            f"reward function {name} returned {number} for sample {place}: return a finite number"
        )
    return number


def _text(text: Any) -> str:
    """Of a conversation: what its messages say, in order."""
    return text if isinstance(text, str) else "".join(message["content"] for message in text)


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise NotFound(f"no file {path}: a reward function is named FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: a reward function is named FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module
