"""`ServeStage`: the last stage; its keys are the options of `plait serve`, and `requests` with `load`."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic

from plait.model.config import dtype_of, kv_dtype_of
from plait.model.hub import resolve
from plait.recipe.forecast import Forecast, Pace
from plait.recipe.keys import Keys, Told
from plait.recipe.stage import Made, Verbs
from plait.runtime.engine import max_len_of, shape_of
from plait.runtime.room import free_slots, stored_shape
from plait.runtime.setup import ServeConfig, open_engine
from plait.spec.errors import ServiceError, UserError
from plait.workload.result import Summary

OWN = {"requests": Annotated[int, pydantic.Field(ge=1)], "load": dict[str, Any]}
"""How many requests are sent before the stage ends, and how: the options of `plait bench serve`."""
BY_RUN = ("url", "model", "count", "api_key", "json_out")
"""Options of a load that the run gives."""


@dataclass(frozen=True, slots=True)
class ServeStage:
    """See `Stage`."""

    section: Told
    load: Told | None
    """None: it serves until it is told to stop."""
    label: str
    """Name of the model for clients, unless the section names one."""
    verbs: Verbs
    name: str = "serve"
    refines: frozenset[str] = frozenset()

    @staticmethod
    def read(raw: object, file: Path, verbs: Verbs) -> "ServeStage":
        """Raises UserError for a key that is unknown (names the nearest), missing or wrong."""
        section = Keys("serve", verbs.serve, ("api_key",), ("model",), OWN).read(raw, file)
        load = None
        if "requests" in section.options:
            keys = Keys("serve.load", verbs.load, BY_RUN)
            load = keys.read(section.options.get("load", {}), file)
        elif "load" in section.options:
            raise UserError(f"{file}: serve.load needs serve.requests: say how many", "serve.load")
        return ServeStage(section, load, file.stem, verbs)

    @property
    def told(self) -> Mapping[str, Any]:
        """See `Stage`."""
        return self.section.json

    @property
    def result(self) -> str | None:
        """See `Stage`."""
        return None if self.load is None else "load.json"

    def inputs(self, made: Made) -> dict[str, Path]:
        """See `Stage`; what it writes is none."""
        found = {name: path for name, path in self.section.files.items() if name != "journal"}
        found |= {} if self.load is None else {f"load.{k}": path for k, path in self.load.files.items()}
        found |= {} if made.placement is None else {"placement": made.placement}
        return found | {"model": resolve(self._model(made))}

    def forecast(self, made: Made, pace: Pace) -> Forecast:
        """See `Stage`."""
        told = self._asked(made).engine
        open_engine(replace(told, journal=None))  # it checks; a journal would be begun
        instances = len(told.manager.placement.instances)
        what = f"{instances} instances" if instances > 1 else "1 instance"
        if self.load is None:
            return Forecast(f"{what} until Ctrl-C", _memory_bytes(told))
        rows = self._sent("http://127.0.0.1", "model", "", None).rows
        shape = shape_of(resolve(told.model))
        computed = sum(pace.forward_s(shape, row.prompt_tokens) for row in rows)
        longest = max(row.arrival_ns / 1e9 + row.output_tokens * pace.decode_s(shape, 1, 256) for row in rows)
        return Forecast(
            f"{what}, {len(rows)} requests", _memory_bytes(told), max(longest, computed / instances)
        )

    def expected(self, made: Made) -> Made:
        """See `Stage`."""
        return made

    def left(self, made: Made, folder: Path) -> Made:
        """See `Stage`."""
        return made

    def run(self, made: Made, folder: Path) -> Mapping[str, Any]:
        """See `Stage`.

        Raises:
            ServiceError: a request did not get its answer.
        """
        asked = self._asked(made)
        if self.load is None:
            asked.run()
            return {}
        found: list[Summary] = []

        async def visit(url: str) -> None:
            key = next(iter(asked.server.api_keys), "")
            sent = self._sent(url, asked.engine.name, key, str(folder / "load.json"))
            # In a thread with a loop of its own, so that the client does not wait for the server's.
            found.append(await asyncio.to_thread(sent.run))

        asked.run(visit)
        (summary,) = found
        if summary.completed < summary.requests:
            raise ServiceError(
                f"{summary.requests - summary.completed} of {summary.requests} requests failed; "
                f"{folder / 'load.json'} says why"
            )
        return asdict(summary)

    def _asked(self, made: Made) -> Any:
        """The verb's record. Without a port of its own, a load goes to any that is free."""
        options = {"name": self.label, "placement": made.placement}
        options |= {} if self.load is None else {"port": 0}
        options |= {name: value for name, value in self.section.options.items() if name not in OWN}
        return self.verbs.serve(**(options | {"model": self._model(made)}))

    def _sent(self, url: str, model: str, api_key: str, json_out: str | None) -> Any:
        assert self.load is not None, "only a load is sent"
        given = dict(
            zip(BY_RUN, (url, model, self.section.options["requests"], api_key, json_out), strict=True)
        )
        return self.verbs.load(**(self.load.options | given))

    def _model(self, made: Made) -> str:
        """Raises UserError where none is named, and no stage before has one."""
        model = self.section.options.get("model", made.model)
        if model is None:
            raise UserError("serve.model is missing: name a model, or put a stage before it", "serve.model")
        return str(model)


def _memory_bytes(told: ServeConfig) -> int:
    """Of weights in the type in which they are computed with, and of keys and values, over all instances."""
    folder, instances = resolve(told.model), len(told.manager.placement.instances)
    dtype = dtype_of(folder, told.dtype, told.exact, told.device)
    kv_dtype = kv_dtype_of(folder, told.kv_dtype)
    shape, longest = shape_of(folder), max_len_of(folder, told.max_len)
    slots = told.kv_tokens or free_slots(shape, dtype, kv_dtype, told.device, instances, longest)
    weights = shape.weight_bytes * (1 if dtype == "bfloat16" else 2)
    return instances * (weights + slots * stored_shape(shape, dtype, kv_dtype).kv_bytes_per_token)
