"""Whatever fits the published schema, or nearly does, gets an answer that the schema describes.

Schemathesis draws requests from /openapi.json, valid and damaged ones, and sends them to the app in process;
behind it is the engine that counts.
"""

import asyncio

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from plait.server.app import create_app
from plait.server.config import ServerConfig
from tests.scale import scaled, seed
from tests.server.counting import counting_engine
from tests.server.wire import is_error

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = scaled(400)
ADMIN = "a key that opens all routes"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    engine = counting_engine(tmp_path_factory.mktemp("fuzz"), max_len=64)
    asyncio.run(engine.start())
    return create_app(engine, ServerConfig(dash=False, admin_key=ADMIN))


def test_every_answer_is_one_that_the_schema_describes(app: FastAPI):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        damaged = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        answered(operation.as_strategy() | damaged, seen)
        answered(operation.as_strategy().map(within), seen)
    print(seen)
    assert len(seen) == sum(len(methods) for methods in schema.raw_schema["paths"].values())
    assert {200, 400} <= seen["POST /tokenize"]
    assert {200, 400} <= seen["POST /v1/completions"]
    assert {200, 400} <= seen["POST /v1/chat/completions"]


def within(case: schemathesis.Case) -> schemathesis.Case:
    """The same request, for what this model has: what the schema cannot say is made to hold."""
    body, only_text = case.body, case.path == "/tokenize"
    if isinstance(body, dict):
        for name in ("model", "logit_bias", "allowed_token_ids", "stop_token_ids", "best_of", "min_tokens"):
            body.pop(name, None)
        if "prompt" in body:
            body["prompt"] = "hello" if isinstance(body["prompt"], str) or only_text else [7, 8, 9]
            if only_text:
                body.pop("messages", None)
        if "messages" in body:
            body["messages"] = [{"role": "user", "content": "hello"}]
            body.pop("continue_final_message", None)
            body.pop("chat_template_kwargs", None)
        if body.pop("max_completion_tokens", None) or body.pop("max_tokens", None):
            body["max_tokens"] = 5
        if body.get("top_logprobs") is not None:
            body["logprobs"] = True
        if not only_text:
            body["n"] = 2
        if not body.get("stream"):
            body.pop("stream_options", None)
    return case


def answered(cases: hypothesis.strategies.SearchStrategy, seen: dict[str, set[int]]) -> None:
    """Send requests drawn for one operation; the statuses of its answers go into `seen`."""

    @hypothesis.seed(seed())
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def send(case: schemathesis.Case) -> None:
        reply = case.call(headers={"authorization": f"Bearer {ADMIN}"})
        late = reply.status_code == 504  # the deadline that the request brought along
        case.validate_response(reply, checks=CHECKS[1:] if late else CHECKS)
        seen.setdefault(case.operation.label, set()).add(reply.status_code)
        if reply.status_code >= 400:
            body = reply.json()
            assert is_error(body, reply.status_code, body["error"]["type"])

    send()
