"""The sequences of one HTTP request, from submission to the last piece."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from plait.runtime.ask import Ask, Piece
from plait.runtime.stream import Stream
from plait.server.errors import ClientGone
from plait.server.front import Front
from plait.server.metrics import Timer

T = TypeVar("T")
Numbered = tuple[int, Piece]


class Run:
    """Streams of all asks of one request. `close` aborts what is unfinished: always call it.

    Iterating gives (index of the ask, piece) as they come. The pieces wait in the engine's streams
    until they are taken, so a slow reader holds up nobody else.
    """

    def __init__(self, front: Front, asks: Sequence[Ask]) -> None:
        """Raises what `engine.submit` raises; then nothing is left running."""
        front.check_ready()
        self._front = front
        self._forwarders: list[asyncio.Task[None]] = []
        self._closed = False
        self.streams: list[Stream] = []
        front.enter()
        try:
            with front.telling():
                self.streams.extend(front.engine.submit(ask) for ask in asks)
        except BaseException:
            self.close()
            raise
        timers = [Timer(front.metrics, stream) for stream in self.streams]
        self.pieces = self._one(timers[0]) if len(asks) == 1 else self._merged(timers)

    @property
    def model(self) -> str:
        """What answers: the adapter's name, or the model's."""
        return self.streams[0].ask.adapter or self._front.engine.card.name

    def close(self) -> None:
        """Abort what still runs. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._front.leave()
        for forwarder in self._forwarders:
            forwarder.cancel()
        for stream in self.streams:
            stream.abort()

    async def _one(self, timer: Timer) -> AsyncIterator[Numbered]:
        with self._front.telling():
            async for piece in self.streams[0]:
                timer.piece(len(piece.tokens), piece.finish is not None)
                yield 0, piece

    async def _merged(self, timers: list[Timer]) -> AsyncIterator[Numbered]:
        queue: asyncio.Queue[Numbered | Exception | None] = asyncio.Queue(maxsize=len(self.streams))
        self._forwarders = [
            asyncio.create_task(_forward(i, stream, timer, queue))
            for i, (stream, timer) in enumerate(zip(self.streams, timers, strict=True))
        ]
        unfinished = len(self.streams)
        while unfinished:
            item = await queue.get()
            if item is None:
                unfinished -= 1
            elif isinstance(item, Exception):
                with self._front.telling():
                    raise item
            else:
                yield item


async def _forward(
    index: int, stream: Stream, timer: Timer, queue: "asyncio.Queue[Numbered | Exception | None]"
) -> None:
    try:
        async for piece in stream:
            timer.piece(len(piece.tokens), piece.finish is not None)
            await queue.put((index, piece))
        await queue.put(None)
    except Exception as error:  # noqa: BLE001  (raised again by the reader of the queue)
        await queue.put(error)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client closes the connection.

    Raises:
        ClientGone: it did.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        request.scope["state"]["gone"] = True
        raise ClientGone("the client closed the connection")
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def left(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
