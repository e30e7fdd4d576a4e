"""POST /v1/chat/completions."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from plait.runtime.ask import Piece
from plait.server import prompts
from plait.server.choices import FINISH, Choice, usage
from plait.server.errors import documented
from plait.server.front import Front
from plait.server.generate import asks, checked, respond
from plait.server.json_response import StrictRoute
from plait.server.logprobs import chat_logprobs, prompt_logprobs
from plait.server.run import Run
from plait.server.schema import StreamOptions
from plait.server.schema_chat import ChatRequest
from plait.server.tools import Calls, NamedChoice
from plait.spec.sampling import SamplingParams, TokenLogprob
from plait.text.tool_format import marker_is_special


def router(front: Front) -> APIRouter:
    """The route."""
    routes = APIRouter(route_class=StrictRoute, tags=["generate"])

    @routes.post(
        "/v1/chat/completions",
        responses=documented(400, 401, 404, 413, 429, 431, 500, 503, 504, also="text/event-stream"),
    )
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Continue a conversation."""
        front.log_unknown(body.unknown())
        front.adapter_of(body.model)
        front.check_ready()
        prepared = await _prepare(front, body)
        front.metrics.n.observe(body.n)
        front.metrics.max_tokens.observe(prepared[1].max_tokens)
        asked = asks(front, request, body, [prepared])
        if body.callable and marker_is_special(front.tool_format, front.engine.tokenizer):
            asked = [replace(ask, skip_special_tokens=False) for ask in asked]
        id = "chatcmpl-" + (body.request_id or request.scope["state"]["request_id"])
        return await respond(
            front, request, asked, body.stream, lambda run: ChatReply(front, body, run, prepared[0], id)
        )

    return routes


async def _prepare(front: Front, body: ChatRequest) -> tuple[list[int], SamplingParams]:
    tokenizer = front.engine.tokenizer
    messages = [message.plain() for message in body.messages]
    text = await prompts.render(tokenizer, messages, **body.template_options())
    [row] = await prompts.encode(tokenizer, [text], body.add_special_tokens)
    prompts.check_ids(row, tokenizer.vocab_size)
    ids, most = prompts.fit(
        row, body.truncate_prompt_tokens, body.most_tokens, None, front.engine.card.max_model_len
    )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    form = await checked(front, body.form() or body.calls_form(front.tool_format, tokenizer))
    return ids, body.sampling(most, tokenizer.vocab_size, logprobs, form)


class ChatReply:
    """Pieces as OpenAI's chat completions."""

    def __init__(self, front: Front, body: ChatRequest, run: Run, row: list[int], id: str) -> None:
        """`row`: token ids of the prompt."""
        self._body = body
        self._run = run
        self._row = row
        self._tokenizer = front.engine.tokenizer
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        self._head = {"id": id, "object": kind, "created": int(time.time()), "model": run.model}
        self._options = body.stream_options or StreamOptions()
        self._choices = [Choice() for _ in run.streams]
        self._calls: list[Calls] = []
        """Of each choice, where tools may be called."""
        if body.callable:
            named = isinstance(body.tool_choice, NamedChoice)
            prefixes = [f"call-{id.removeprefix('chatcmpl-')}-{i}" for i in range(len(run.streams))]
            self._calls = [Calls(front.tool_format, prefix, named=named) for prefix in prefixes]
        self._drawn = 0
        self._begun: set[int] = set()

    def add(self, index: int, piece: Piece) -> None:
        """Take in a piece for the whole answer."""
        self._drawn += len(piece.tokens)
        self._choices[index].add(piece)

    def whole(self) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, choice in enumerate(self._choices):
            message, finish = self._message(index, "".join(choice.text))
            said: dict[str, Any] = {
                "index": index,
                "message": message,
                "logprobs": self._scores(Piece(logprobs=tuple(choice.logprobs))),
                "finish_reason": finish,
                "stop_reason": choice.stop_reason,
            }
            choices.append(said | ({"token_ids": choice.tokens} if self._body.return_token_ids else {}))
        answer = self._head | {"choices": choices, "usage": self._usage()}
        return answer | self._of_prompt(self._choices[0].prompt_logprobs)

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """The role first, then text; nothing where there is nothing to say yet."""
        scores = self._choices[index].prompt_logprobs
        scores += piece.prompt_logprobs
        if not (piece.text or piece.tokens or piece.finish):
            return []
        found = []
        if index not in self._begun:
            self._begun.add(index)
            role = self._chunk(index, {"role": "assistant", "content": ""}, Piece())
            found.append(role | self._of_prompt(scores))
        self._drawn += len(piece.tokens)
        *before, last = self._deltas(index, piece)
        if not last and not (piece.finish or self._body.return_token_ids or self._body.logprobs):
            return found
        found += [self._chunk(index, delta, Piece()) for delta in before]
        return [*found, self._chunk(index, last, piece)]

    def last_chunks(self) -> list[dict[str, Any]]:
        """The usage, where it was asked for."""
        return [self._head | {"choices": [], "usage": self._usage()}] if self._options.include_usage else []

    def _message(self, index: int, text: str) -> tuple[dict[str, Any], str | None]:
        """What the whole answer says, and why it ended."""
        finish = self._choices[index].finish
        if not self._calls:
            return {"role": "assistant", "content": text}, finish
        calls = self._calls[index]
        calls.deltas(text, last=True)
        return calls.message(), calls.finish(finish)

    def _deltas(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """What a piece says, at least one; empty where its text is not understood yet."""
        if not self._calls:
            return [{"content": piece.text}]
        return self._calls[index].deltas(piece.text, last=piece.finish is not None) or [{}]

    def _chunk(self, index: int, delta: dict[str, Any], piece: Piece) -> dict[str, Any]:
        finish = FINISH[piece.finish] if piece.finish else None
        said: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": self._scores(piece) if piece.logprobs else None,
            "finish_reason": self._calls[index].finish(finish) if self._calls else finish,
            "stop_reason": piece.stop_reason,
        }
        if self._body.return_token_ids:
            said["token_ids"] = list(piece.tokens)
        more = {"usage": self._usage()} if self._options.continuous_usage_stats else {}
        return self._head | {"choices": [said]} | more

    def _scores(self, piece: Piece) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        as_ids = self._body.return_tokens_as_token_ids
        return {"content": chat_logprobs(self._tokenizer, piece.logprobs, as_ids)}

    def _of_prompt(self, scores: Sequence[TokenLogprob]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._body.prompt_logprobs is not None:
            found["prompt_logprobs"] = prompt_logprobs(self._tokenizer, scores)
        if self._body.return_token_ids:
            found["prompt_token_ids"] = self._row
        return found

    def _usage(self) -> dict[str, Any]:
        return usage(self._run.streams, self._body.n, self._drawn)
