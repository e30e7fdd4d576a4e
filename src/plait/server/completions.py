"""POST /v1/completions."""

import time
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
from plait.server.logprobs import CompletionLogprobs, prompt_logprobs
from plait.server.run import Run
from plait.server.schema import StreamOptions
from plait.server.schema_completions import CompletionRequest
from plait.spec.sampling import SamplingParams

DEFAULT_MAX_TOKENS = 16


def router(front: Front) -> APIRouter:
    """The route."""
    routes = APIRouter(route_class=StrictRoute, tags=["generate"])

    @routes.post(
        "/v1/completions",
        responses=documented(400, 401, 404, 413, 429, 431, 500, 503, 504, also="text/event-stream"),
    )
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue one prompt or several."""
        front.log_unknown(body.unknown())
        front.adapter_of(body.model)
        front.check_ready()
        prepared = await _prepare(front, body)
        front.metrics.n.observe(body.n)
        asked = asks(front, request, body, prepared)
        rows = [ids for ids, _ in prepared]
        id = "cmpl-" + (body.request_id or request.scope["state"]["request_id"])
        return await respond(
            front, request, asked, body.stream, lambda run: CompletionReply(front, body, run, rows, id)
        )

    return routes


async def _prepare(front: Front, body: CompletionRequest) -> list[tuple[list[int], SamplingParams]]:
    tokenizer = front.engine.tokenizer
    given = body.prompts()
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    rows = await prompts.encode(tokenizer, texts, body.add_special_tokens) if texts else given
    form = await checked(front, body.form())
    prepared = []
    for row in rows:
        assert not isinstance(row, str)
        prompts.check_ids(row, tokenizer.vocab_size)
        most = 1 if body.max_tokens == 0 else body.max_tokens
        ids, most = prompts.fit(
            row, body.truncate_prompt_tokens, most, DEFAULT_MAX_TOKENS, front.engine.card.max_model_len
        )
        front.metrics.max_tokens.observe(most)
        prepared.append((ids, _sampling(body, most, tokenizer.vocab_size, form)))
    return prepared


def _sampling(body: CompletionRequest, most: int, vocab_size: int, form: str) -> SamplingParams:
    sampling = body.sampling(most, vocab_size, body.logprobs, form)
    if not (body.echo and body.logprobs is not None):
        return sampling
    wanted = max(body.logprobs, sampling.prompt_logprobs or 0)
    return replace(sampling, prompt_logprobs=wanted)


class CompletionReply:
    """Pieces as OpenAI's text completions."""

    def __init__(
        self, front: Front, body: CompletionRequest, run: Run, rows: list[list[int]], id: str
    ) -> None:
        """`rows`: token ids of the prompts."""
        self._body = body
        self._run = run
        self._rows = rows
        self._tokenizer = front.engine.tokenizer
        self._head = {
            "id": id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": run.model,
        }
        self._options = body.stream_options or StreamOptions()
        self._choices = [Choice() for _ in run.streams]
        self._drawn = 0
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._begun: set[int] = set()

    def add(self, index: int, piece: Piece) -> None:
        """Take in a piece for the whole answer."""
        self._choices[index].add(self._cut(piece))

    def whole(self) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, choice in enumerate(self._choices):
            piece = Piece(
                text="".join(choice.text),
                tokens=tuple(choice.tokens),
                logprobs=tuple(choice.logprobs),
                prompt_logprobs=tuple(choice.prompt_logprobs),
            )
            said = self._choice(index, piece)
            said |= {"finish_reason": choice.finish, "stop_reason": choice.stop_reason}
            choices.append(said)
        return self._head | {"choices": choices, "usage": self._usage()}

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """One chunk; none where there is nothing to say yet."""
        piece = self._cut(piece)
        scores = self._choices[index].prompt_logprobs
        scores += piece.prompt_logprobs
        if not (piece.text or piece.tokens or piece.finish):
            return []
        if scores:
            piece, self._choices[index].prompt_logprobs = replace(piece, prompt_logprobs=tuple(scores)), []
        said = self._choice(index, piece)
        said["finish_reason"] = FINISH[piece.finish] if piece.finish else None
        said["stop_reason"] = piece.stop_reason
        more = {"usage": self._usage()} if self._options.continuous_usage_stats else {}
        return [self._head | {"choices": [said]} | more]

    def last_chunks(self) -> list[dict[str, Any]]:
        """The usage, where it was asked for."""
        return [self._head | {"choices": [], "usage": self._usage()}] if self._options.include_usage else []

    def _cut(self, piece: Piece) -> Piece:
        """max_tokens 0 asks for the prompt alone: the token that was drawn for it is dropped."""
        if self._body.max_tokens == 0:
            finish, scores = piece.finish, piece.prompt_logprobs
            return Piece(finish=finish, prompt_logprobs=scores, stop_reason=None)
        self._drawn += len(piece.tokens)
        return piece

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """The next part of a choice, with the prompt in front of the first where it is echoed."""
        first = index not in self._begun
        self._begun.add(index)
        row = self._rows[index // self._body.n]
        echoed = first and self._body.echo
        text = self._tokenizer.decode(row, self._body.skip_special_tokens) if echoed else ""
        said: dict[str, Any] = {"index": index, "text": text + piece.text}
        said["logprobs"] = self._scores(index, piece, row if echoed else [])
        if first and self._body.prompt_logprobs is not None:
            said["prompt_logprobs"] = prompt_logprobs(self._tokenizer, piece.prompt_logprobs)
        if self._body.return_token_ids:
            said["token_ids"] = list(piece.tokens)
            said["prompt_token_ids"] = row if first else None
        return said

    def _scores(self, index: int, piece: Piece, echoed: list[int]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        shape = self._logprobs.get(index)
        if shape is None:
            shape = CompletionLogprobs(self._tokenizer, self._body.return_tokens_as_token_ids)
            self._logprobs[index] = shape
        parts = [shape.first(echoed[0]), shape.of(piece.prompt_logprobs)] if echoed else []
        parts.append(shape.of(piece.logprobs))
        return {key: [value for part in parts for value in part[key]] for key in parts[-1]}

    def _usage(self) -> dict[str, Any]:
        return usage(self._run.streams, self._body.n, self._drawn)
