"""What tests say and read on the wire."""

import asyncio
import json

import aiohttp

from tests.server.conftest import Site

ASK = {"prompt": [10], "max_tokens": 4}


def is_error(body: dict, status: int, kind: str) -> bool:
    """The one form of an error body."""
    error = body["error"]
    fields = {"message", "type", "param", "code"}
    return (
        set(body) == {"error"} and set(error) == fields and (error["type"], error["code"]) == (kind, status)
    )


def post_bytes(body: dict) -> bytes:
    """A completion request as it goes over the wire."""
    data = json.dumps(body).encode()
    head = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return b"POST /v1/completions HTTP/1.1\r\n" + head.encode() + data


async def raw(site: Site, data: bytes) -> bytes:
    """What the server answers to these bytes, until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(data)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def stream_lines(reply: aiohttp.ClientResponse) -> list[bytes]:
    return [line[6:].strip() async for line in reply.content if line.startswith(b"data: ")]
