"""`Calls`: the compiled module, whose calls can be written down and made again without Python around them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function and its arguments: numbers, and addresses of tensors that somebody keeps alive."""


class Notes(threading.local):
    """What a thread writes down: several models, each on its own, may be recorded in one process."""

    written: list[Call] | None = None


class Calls:
    """Behaves like the module it stands for."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._notes = Notes()

    @contextmanager
    def writing(self) -> Iterator[list[Call]]:
        """Every call is made as always, and put into the list that this gives."""
        notes = self._notes
        assert notes.written is None, "calls are being written down already"
        notes.written = written = []
        try:
            yield written
        finally:
            notes.written = None

    @property
    def aside(self) -> ModuleType:
        """The module itself, for other threads than the one that computes: their calls are no part of what it
        does and are never written down."""
        return self._module

    def __getattr__(self, name: str) -> Any:
        body = getattr(self._module, name)
        if not callable(body):
            return body

        notes = self._notes

        def call(*args: Any) -> Any:
            if notes.written is not None:
                notes.written.append((body, args))
            return body(*args)

        self.__dict__[name] = call  # found without this detour from now on
        return call
