"""A worker that dies in the midst of a group's step: at its so-manieth push to, or wait for, other members.

Which one follows from PLAIT_TEST_DOOM, the instance and its epoch.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from typing import Any

from plait.worker import process
from plait.worker.exchange import Exchange

OPERATIONS = 1000
"""Of a step with prompts some 40 to 100, of one that decodes some 10 to 30."""


def dying(operation: Callable[..., Any], counts: dict[bytes, int]) -> Callable[..., Any]:
    """As the operation, but the last of those that are left to a worker kills it."""

    def counted(self: Exchange, *args: Any) -> Any:
        seed = f"{os.environ['PLAIT_TEST_DOOM']} {self._name.decode()}"
        left = counts.setdefault(self._name, random.Random(seed).randint(1, OPERATIONS))
        counts[self._name] = left - 1
        if left == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(self, *args)

    return counted


if __name__ == "__main__":
    left: dict[bytes, int] = {}
    Exchange.push = dying(Exchange.push, left)  # type: ignore[method-assign]
    Exchange.settle = dying(Exchange.settle, left)  # type: ignore[method-assign]
    sys.exit(process.main())
