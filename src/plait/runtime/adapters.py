"""`Adapters`: the low-rank adapters (LoRA) that an engine answers with, by the names that clients use.

An adapter whose name is taken away takes no new requests; workers have it until its last one has ended.
"""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from plait.model.lora_folder import CONFIG, digest_of, files_of, settings_of
from plait.runtime.driver import Fleet
from plait.spec.adapter import Adapter
from plait.spec.command import Command, End
from plait.spec.errors import NotFound, UserError
from plait.spec.event import Event

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][\w./:-]{0,127}", re.ASCII)
MOST = 64
"""Adapters at a time."""


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What clients may know of an adapter."""

    name: str
    root: str
    """Its folder."""
    number: int
    """Of `Adapter`."""
    created: int
    """When it was loaded, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class AdapterStats:
    """An adapter that takes requests, now."""

    name: str
    running: int
    """Requests that have not ended."""
    requests: int
    """That came since it was loaded."""


class Adapters:
    """Those of one engine; everything runs in its event loop."""

    def __init__(self, fleet: Fleet, reserved: Container[str]) -> None:
        """`reserved`: names that mean the model itself."""
        self._fleet, self._reserved = fleet, reserved
        self.cards: dict[str, AdapterCard] = {}
        """Those that take requests, in the order in which they were loaded."""
        self._numbers = 0
        self._leaving: dict[int, None] = {}
        self._requests: dict[int, int] = {}
        """Request that has not ended -> its adapter."""
        self._came: Counter[int] = Counter()
        self._loading = asyncio.Lock()

    async def read(self, name: str, folder: Path) -> Adapter:
        """Look at a folder, and give it a number.

        Raises:
            UserError: the name cannot be used, or the folder holds no adapter that can.
        """
        self._check(name)
        self._numbers += 1
        return await asyncio.to_thread(_named, folder, self._numbers)

    async def load(self, name: str, adapter: Adapter) -> AdapterCard:
        """Take requests for an adapter once every worker has it.

        Raises:
            UserError: it does not fit the model, or the name cannot be used.
        """
        async with self._loading:
            self._check(name)
            if len(self.cards) + len(self._leaving) >= MOST:
                raise UserError(f"{MOST} adapters are loaded: unload one first", "lora_name")
            await self._fleet.adapt(adapter)
            card = self.cards[name] = AdapterCard(name, adapter.folder, adapter.number, int(time.time()))
        log.info("%s is adapter %d, from %s", name, card.number, card.root)
        return card

    def unload(self, name: str) -> AdapterCard:
        """Take no more requests for an adapter. Those that it has go on to their end.

        Raises:
            NotFound: there is none of this name.
        """
        self.number(name)
        card = self.cards.pop(name)
        self._leaving[card.number] = None
        log.info("%s, adapter %d, takes no more requests", name, card.number)
        self._settle(card.number)
        return card

    def number(self, name: str) -> int:
        """Of an adapter by its name; 0 for no name, which means the model itself.

        Raises:
            NotFound: there is none.
        """
        if not name:
            return 0
        if name not in self.cards:
            raise NotFound(f"there is no adapter {name[:128]!r}; /v1/models lists all", "model")
        return self.cards[name].number

    def begin(self, request: int, number: int) -> None:
        """A request of an adapter was accepted."""
        if number:
            self._requests[request] = number
            self._came[number] += 1

    def see(self, now_ns: int, event: Event, commands: Sequence[Command]) -> None:
        """Requests end."""
        if self._requests:
            for command in commands:
                if isinstance(command, End) and (number := self._requests.pop(command.request, 0)):
                    self._settle(number)

    def stats(self) -> tuple[AdapterStats, ...]:
        """Of those that take requests."""
        running = Counter(self._requests.values())
        cards = self.cards.values()
        return tuple(AdapterStats(c.name, running[c.number], self._came[c.number]) for c in cards)

    def _settle(self, number: int) -> None:
        """Let an adapter go that takes no requests and has none."""
        if number in self._leaving and number not in self._requests.values():
            del self._leaving[number], self._came[number]
            self._fleet.unadapt(number)

    def _check(self, name: str) -> None:
        if name in self._reserved:
            raise UserError(f"{name!r} is the model's own name: choose another for the adapter", "lora_name")
        if not NAME.fullmatch(name):
            raise UserError(
                "an adapter's name has 1 to 128 letters, digits or _./:-, and begins with a letter or digit",
                "lora_name",
            )
        if name in self.cards:
            raise UserError(
                f"an adapter {name!r} is loaded already: unload it first, or choose another name", "lora_name"
            )


def _named(folder: Path, number: int) -> Adapter:
    folder = folder.absolute()
    config, weights = files_of(folder)
    settings_of(config, str(folder / CONFIG))
    return Adapter(number, str(folder), digest_of(config, weights))
