"""What the server can be asked for at all: no route changes what it is or does for others."""

from pathlib import Path

from plait.server.app import create_app
from plait.server.config import ServerConfig
from tests.server.counting import counting_engine

READ = {"get", "head"}
SOURCES = Path(__file__).parents[2] / "src" / "plait" / "server"
ASK = {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/ping"}
"""They take a body, and leave nothing behind but their answer."""


def test_no_route_changes_the_server(tmp_path):
    """Roles, weights and the end of the server are for whoever runs it. A route for them needs a key of its
    own, which no caller has: see SECURITY.md before this list grows."""
    app = create_app(counting_engine(tmp_path), ServerConfig())
    paths = app.openapi()["paths"]
    assert {path for path, methods in paths.items() if set(methods) - READ} == ASK


def test_only_the_dashboards_files_are_left_out_of_the_schema():
    hiding = [path for path in SOURCES.rglob("*.py") if "include_in_schema" in path.read_text()]
    assert [path.name for path in hiding] == ["routes.py"]
    assert "methods" not in hiding[0].read_text(), "they can be read, no more"


async def test_lists_have_limits(site):
    ask = {"prompt": [10], "max_tokens": 1}
    for more, param in (
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"allowed_token_ids": [1] * (2**18 + 1)}, "allowed_token_ids"),
        ({"n": 129}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"request_id": "x" * 129}, "request_id"),
    ):
        status, body = await site.post("/v1/completions", ask | more)
        assert (status, body["error"]["param"].partition(".")[0]) == (400, param)
    hello = {"role": "user", "content": "x"}
    for messages in ([hello] * 4097, [hello | {"content": [{"type": "text", "text": "x"}] * 1025}]):
        for path in ("/v1/chat/completions", "/tokenize"):
            status, body = await site.post(path, {"messages": messages})
            assert status == 400
            assert body["error"]["param"].startswith("messages")
    many = {"prompt": [[10]] * 1024, "n": 2, "max_tokens": 1}
    assert (await site.post("/v1/completions", many))[1]["error"]["param"] == "n"
