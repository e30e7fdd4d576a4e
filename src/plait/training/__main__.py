"""`python -m plait.training`: one rank of a trainer. Its configuration is the first frame on stdin, orders
follow, replies go to stdout; when stdin closes it leaves. Now and then it says that it lives."""

import contextlib
import os
import sys
import threading
import time

import msgspec
import torch

from plait.spec.errors import PlaitError
from plait.training.orders import (
    Alive,
    Failed,
    Leave,
    RankConfig,
    Ready,
    Reply,
    encoded,
    order_of,
    read_frame,
)
from plait.training.rank import TrainingRank

BEATS = 4
"""Signs of life within the time that others are patient for."""


def main() -> int:
    """Returns the exit status."""
    replies, talking = os.fdopen(os.dup(1), "wb"), threading.Lock()

    def say(reply: Reply) -> None:
        with talking, contextlib.suppress(BrokenPipeError):  # the driver is gone: stdin will say so
            replies.write(encoded(reply))
            replies.flush()

    os.dup2(2, 1)  # what libraries print must not come between replies
    body = read_frame(sys.stdin.buffer)
    if body is None:
        return 1
    config = msgspec.msgpack.decode(body, type=RankConfig)
    torch.set_num_threads(config.threads)

    def live() -> None:
        while True:
            time.sleep(config.patience_s / BEATS)
            say(Alive())

    threading.Thread(target=live, daemon=True).start()
    try:
        rank = TrainingRank(config)
        say(Ready(rank.weight_bytes))
        while (body := read_frame(sys.stdin.buffer)) is not None:
            order = order_of(body)
            if isinstance(order, Leave):
                return 0
            say(rank.carry_out(order))
    except PlaitError as error:
        say(Failed(str(error), ours=error.status >= 500))
        return 2
    except RuntimeError as error:  # torch: another rank is gone, or memory is
        say(Failed(f"rank {config.rank}: {error}"))
        return 3
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of the group may still wait for those who are gone
