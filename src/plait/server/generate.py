"""The way that all endpoints which draw tokens share: submit, then answer whole or as a stream."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from fastapi import Request
from starlette.responses import Response

from plait.runtime.ask import Ask
from plait.server.errors import Refusal
from plait.server.front import Front
from plait.server.json_response import JsonResponse
from plait.server.reply import Reply
from plait.server.run import Numbered, Run, unless_gone
from plait.server.schema import SamplingFields
from plait.server.sse import EventStream
from plait.spec.errors import UserError
from plait.spec.sampling import SamplingParams


def asks(
    front: Front, request: Request, body: SamplingFields, prompts: Sequence[tuple[list[int], SamplingParams]]
) -> list[Ask]:
    """One ask for each choice of each prompt, in that order.

    Raises:
        UserError: there are too many, or the timeout is malformed.
        NotFound: there is no such model.
    """
    if len(prompts) * body.n > front.config.max_choices:
        raise UserError(f"prompts times n is over {front.config.max_choices}; send several requests", "n")
    timeout_s = _timeout_s(front, request, body)
    timeout_ns = None if timeout_s is None else int(timeout_s * 1e9)
    adapter = front.adapter_of(body.model)
    return [
        Ask(
            tuple(ids),
            dataclasses.replace(sampling, choice=choice),
            timeout_ns,
            body.priority,
            body.skip_special_tokens,
            adapter=adapter,
        )
        for ids, sampling in prompts
        for choice in range(body.n)
    ]


async def checked(front: Front, grammar: str) -> str:
    """The same grammar, once the engine has compiled it. Raises UserError where it cannot be used."""
    if grammar:
        await asyncio.to_thread(front.engine.check_grammar, grammar)
    return grammar


async def respond(
    front: Front, request: Request, asked: Sequence[Ask], stream: bool, reply_to: Callable[[Run], Reply]
) -> Response:
    """Submit, and answer with what `reply_to` makes of the pieces."""
    with front.calling(request):
        run = Run(front, asked)
    reply = reply_to(run)
    try:
        if stream:
            first = await unless_gone(request, _first(run))
            return EventStream(front, request, run, first, reply)
        await unless_gone(request, _collect(run, reply))
    except BaseException:
        run.close()
        raise
    run.close()
    return JsonResponse(reply.whole())


async def _first(run: Run) -> Numbered:
    return await anext(run.pieces)


async def _collect(run: Run, reply: Reply) -> None:
    async for index, piece in run.pieces:
        reply.add(index, piece)


def _timeout_s(front: Front, request: Request, body: SamplingFields) -> float | None:
    """The shortest of the body's, the header's and the server's own."""
    given = [body.timeout, front.config.default_timeout_s]
    header = request.headers.get("x-request-timeout")
    if header is not None:
        try:
            given.append(float(header))
        except ValueError as error:
            raise UserError("the header x-request-timeout is a number of seconds") from error
        if not 0 < float(header) <= 86400:
            raise Refusal(400, "the header x-request-timeout is over 0 and at most 86400 seconds")
    return min((seconds for seconds in given if seconds is not None), default=None)
