"""`Relays`: a launcher whose workers reach their driver by connections that can be reset or made slow."""

import asyncio
import socket
import struct
from dataclasses import replace
from typing import Any

from plait.runtime.launch import Launcher, Started
from plait.worker.config import WorkerConfig

CHUNK_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER so that closing sends RST, and what was not read is lost."""


class Relays:
    """See `Launcher`. One listening socket for each worker process."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._writers: dict[int, list[asyncio.StreamWriter]] = {}
        """Instance -> both ends of its connections."""
        self._delays_s: dict[int, float] = {}
        self._servers: list[asyncio.Server] = []
        self._passing: list[asyncio.Future[list[Any]]] = []

    async def launch(self, config: WorkerConfig) -> Started:
        """See `Launcher`."""
        host, port = config.address.removeprefix("tcp://").rsplit(":", 1)
        instance = config.instance

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there, back = await asyncio.open_connection(host, int(port))
            except OSError:  # the driver is gone
                writer.close()
                return
            self._writers.setdefault(instance, []).extend((writer, back))
            ways = (self._pass_on(instance, reader, back), self._pass_on(instance, there, writer))
            both = asyncio.gather(*ways, return_exceptions=True)  # a reset is an error, as it should be
            self._passing.append(both)
            await both
            writer.close()
            back.close()

        server = await asyncio.start_server(meet, "127.0.0.1", 0)
        self._servers.append(server)
        own = server.sockets[0].getsockname()[1]
        return await self._launcher.launch(replace(config, address=f"tcp://127.0.0.1:{own}"))

    async def _pass_on(
        self, instance: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if delay_s := self._delays_s.get(instance):
                await asyncio.sleep(delay_s)
            writer.write(data)
            await writer.drain()
        writer.close()

    def reset(self, instance: int) -> None:
        """Both ends of an instance's connections see a reset; new ones are let through."""
        for writer in self._writers.pop(instance, []):
            opened: Any = writer.get_extra_info("socket")
            if not writer.is_closing():
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                writer.transport.abort()

    def slow(self, instance: int, delay_s: float) -> None:
        """From now on all that passes waits for so long; 0: no more."""
        self._delays_s[instance] = delay_s

    async def close(self) -> None:
        """See `Launcher`."""
        for server in self._servers:
            server.close()
        for instance in tuple(self._writers):
            self.reset(instance)
        await asyncio.gather(*self._passing)
        await self._launcher.close()
