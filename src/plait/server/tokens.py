"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from plait.server import prompts
from plait.server.errors import documented
from plait.server.front import Front
from plait.server.json_response import JsonResponse, StrictRoute
from plait.server.schema_tokens import DetokenizeRequest, TokenizeRequest


def router(front: Front) -> APIRouter:
    """The routes."""
    routes = APIRouter(route_class=StrictRoute, tags=["tokens"])
    tokenizer = front.engine.tokenizer
    errors = documented(400, 401, 404, 413, 429, 431, 500)

    @routes.post("/tokenize", responses=errors)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text or of a conversation."""
        front.log_unknown(list(body.model_extra or {}))
        front.adapter_of(body.model)
        text = await _text(front, body)
        special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
        [ids] = await prompts.encode(tokenizer, [text], special)
        answer: dict[str, Any] = {"count": len(ids), "max_model_len": front.engine.card.max_model_len}
        answer |= {"tokens": ids, "token_strs": None}
        if body.return_token_strs:
            answer["token_strs"] = [tokenizer.token(id) for id in ids]
        return JsonResponse(answer)

    @routes.post("/detokenize", responses=errors)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids, special tokens included."""
        front.log_unknown(list(body.model_extra or {}))
        front.adapter_of(body.model)
        if body.tokens:
            prompts.check_ids(body.tokens, tokenizer.vocab_size)
        text = await prompts.work(len(body.tokens), lambda: tokenizer.decode(body.tokens))
        return JsonResponse({"prompt": text})

    _add_info(routes, front)
    return routes


def _add_info(routes: APIRouter, front: Front) -> None:
    tokenizer = front.engine.tokenizer

    @routes.get("/tokenizer_info", responses=documented(401, 429, 431, 500))
    async def tokenizer_info() -> Response:
        """What a client needs to know to tokenise by itself."""
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": tokenizer.vocab_size,
            "eos_token_ids": list(tokenizer.eos_ids),
            "model_max_length": front.engine.card.max_model_len,
            "chat_template": tokenizer.chat_template,
        }
        return JsonResponse(tokenizer.special_tokens | about)


async def _text(front: Front, body: TokenizeRequest) -> str:
    if body.messages is None:
        return body.prompt or ""
    return await prompts.render(
        front.engine.tokenizer,
        [message.plain() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        extra=body.chat_template_kwargs,
        tools=[tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
    )
