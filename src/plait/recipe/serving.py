"""`ServeStage`: the last stage; its keys are the options of `plait serve`, and `requests` with `load`."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic

from plait.client.chat import ChatConfig, answer
from plait.model.config import dtype_of, kv_dtype_of
from plait.model.hub import resolve
from plait.recipe.drill import Drill
from plait.recipe.forecast import Forecast, Pace
from plait.recipe.keys import Keys, Told
from plait.recipe.stage import Made, Verbs
from plait.runtime.engine import Engine, max_len_of, shape_of
from plait.runtime.room import free_slots, stored_shape
from plait.runtime.setup import ServeConfig, open_engine
from plait.spec.errors import ServiceError, UserError
from plait.workload.result import Summary

OWN = {
    "ask": list[str],
    "requests": Annotated[int, pydantic.Field(ge=1)],
    "load": dict[str, Any],
    "kill_after": Annotated[int, pydantic.Field(ge=1)],
}
"""Questions that are asked first; how many requests are sent before the stage ends, and how: the options of
`plait bench serve`; and after how many of them a worker is killed, to see that none is lost."""
ANSWERS, JOURNAL = "answers.json", "journal.jsonl"
"""In the stage's folder."""
ANSWER_TOKENS = 48
"""Most tokens of an answer to a question."""
BY_PLAN = ("api_key", "admin_key", "plan", "auto", "on")
"""Options that are no keys: secrets have no place in a recipe, and the stage before chooses the placement."""
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
        section = Keys("serve", verbs.serve, BY_PLAN, ("model",), OWN).read(raw, file)
        load = None
        if "requests" in section.options:
            keys = Keys("serve.load", verbs.load, BY_RUN)
            load = keys.read(section.options.get("load", {}), file)
        for name in ("load", "kill_after", "ask"):
            if name in section.options and load is None:
                raise UserError(f"{file}: serve.{name} needs serve.requests: say how many", f"serve.{name}")
        if section.options.get("kill_after", 0) >= section.options.get("requests", 1):
            raise UserError(f"{file}: serve.kill_after must be below serve.requests", "serve.kill_after")
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
        asked = self._asked(made, folder)
        if self.load is None:
            asked.run()
            return {}
        found: list[Summary] = []
        drills: list[Drill] = []
        key = next(iter(asked.server.api_keys), "")

        async def visit(engine: Engine, url: str) -> None:
            await self._ask(ChatConfig(url, asked.engine.name, key, ANSWER_TOKENS, 0.0), folder)
            sent = self._sent(url, asked.engine.name, key, str(folder / "load.json"))
            if "kill_after" in self.section.options:
                after, requests = self.section.options["kill_after"], self.section.options["requests"]
                drills.append(Drill(engine, after, (after + requests) // 2))
                engine.watch(drills[0].see)
            # In a thread with a loop of its own, so that the client does not wait for the server's.
            found.append(await asyncio.to_thread(sent.run))

        asked.run(visit)
        (summary,) = found
        if summary.completed < summary.requests:
            raise ServiceError(
                f"{summary.requests - summary.completed} of {summary.requests} requests failed; "
                f"{folder / 'load.json'} says why"
            )
        if drills and drills[0].lost_ns is None:
            raise ServiceError("the load ended before a worker was killed: lower kill_after")
        return asdict(summary) | ({"drill": drills[0].figures()} if drills else {})

    async def _ask(self, target: ChatConfig, folder: Path) -> None:
        """Questions and answers, kept beside the load."""
        told = []
        for question in self.section.options.get("ask", ()):
            parts = [part async for part in answer(target, [{"role": "user", "content": question}])]
            told.append({"question": question, "answer": "".join(parts).strip()})
        if told:
            (folder / ANSWERS).write_text(json.dumps(told, indent=1) + "\n")

    def _asked(self, made: Made, folder: Path | None = None) -> Any:
        """The verb's record. A load goes, where no port is named, to any that is free, and what happens is
        written to a journal in `folder`."""
        options = {"name": self.label, "placement": made.placement}
        options |= {} if self.load is None else {"port": 0}
        options |= {} if self.load is None or folder is None else {"journal": folder / JOURNAL}
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
    weights = shape.in_type(16.0 if dtype == "bfloat16" else 32.0).weight_bytes
    return instances * (weights + slots * stored_shape(shape, dtype, kv_dtype).kv_bytes_per_token)
