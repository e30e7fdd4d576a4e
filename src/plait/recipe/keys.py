"""`Keys`: the options of a verb as the keys of a recipe's section.

A key is spelled as the option is typed, with _ for -: `--max-model-len` is `max_model_len`. What a verb takes
is said once, in its own signature; a section cannot know a key that the verb does not have.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NotRequired, Required

import pydantic
from typer.models import ParameterInfo
from typing_extensions import TypedDict

from plait.runtime.recipe import unknown_field
from plait.spec.errors import UserError

BESIDE = ("model", "cost", "pace")
"""Keys whose text is a path where it names what lies beside the recipe, and else a name."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a section says."""

    json: Mapping[str, Any]
    """As it was written, in JSON's types."""
    options: Mapping[str, Any]
    """The verb's parameters; paths start from the recipe's folder."""

    @property
    def files(self) -> dict[str, Path]:
        """Files and folders that are named and exist, by parameter."""
        found = {name: value for name, value in self.options.items() if isinstance(value, Path)}
        found |= {name: Path(self.options[name]) for name in BESIDE if name in self.options}
        return {name: path for name, path in found.items() if path.exists()}


@dataclass(frozen=True, slots=True)
class Keys:
    """Of one section."""

    where: str
    """The section, for messages: `compress`."""
    verb: Callable[..., Any]
    given: tuple[str, ...]
    """Parameters that the run gives, so that they are no keys."""
    supplied: tuple[str, ...] = ()
    """Parameters that may be left out, though the verb asks for them: a stage before has them."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Keys that the verb does not have, with their forms; they are read as options of the same names."""

    def read(self, raw: object, file: Path) -> Told:
        """What a section says, checked.

        Raises:
            UserError: a key is unknown (names the nearest), missing or wrong.
        """
        if not isinstance(raw, Mapping):
            raise UserError(f"{file}: {self.where} must hold keys, each with its value", self.where)
        names = {key: name for key, name, _ in self._fields()}
        for key in raw:
            if key not in names:
                raise unknown_field(f"{self.where}.", key, tuple(names))
        form = TypedDict("form", {key: hint for key, _, hint in self._fields()})  # type: ignore[misc]
        form.__pydantic_config__ = pydantic.ConfigDict(coerce_numbers_to_str=True)
        adapter = pydantic.TypeAdapter(form)
        try:
            values = adapter.validate_python(raw)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join((self.where, *map(str, first["loc"])))
            raise UserError(f"{file}: {place}: {first['msg'].lower()}", place) from error
        options = {names[key]: _placed(key, value, file.parent) for key, value in values.items()}
        return Told(adapter.dump_python(values, mode="json"), options)

    def _fields(self) -> list[tuple[str, str, Any]]:
        """Key, parameter and form of each."""
        found: list[tuple[str, str, Any]] = [(key, key, NotRequired[hint]) for key, hint in self.own.items()]
        for name, parameter in inspect.signature(self.verb, eval_str=True).parameters.items():
            if name in self.given:
                continue
            kind, info = typing.get_args(parameter.annotation)
            assert isinstance(info, ParameterInfo), f"{name} is an option of a verb"
            limited = Annotated[kind, pydantic.Field(ge=info.min, le=info.max)]
            needed = parameter.default is parameter.empty and name not in self.supplied
            found.append((_spelled(name, info), name, Required[limited] if needed else NotRequired[limited]))
        return found


def _spelled(name: str, info: ParameterInfo) -> str:
    """The key of a parameter: its option, or where that has no name of its own, the parameter's."""
    typed = next((text for text in (info.default, *(info.param_decls or ())) if isinstance(text, str)), name)
    return typed.partition("/")[0].strip("-").replace("-", "_")


def _placed(key: str, value: Any, here: Path) -> Any:
    """The value, with a path taken from the recipe's folder."""
    if isinstance(value, Path):
        return here / value.expanduser()
    if key in BESIDE and isinstance(value, str) and (here / value).exists():
        return str(here / value)
    return value
