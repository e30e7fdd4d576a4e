"""Refusals as openai-python sees them."""

import openai
import pytest

HI = [{"role": "user", "content": "hi"}]


async def ask(site, key: str = "k", retries: int = 0, **changes):
    body = {"model": "tiny", "messages": HI, "max_tokens": 4} | changes
    async with openai.AsyncOpenAI(base_url=site.url + "/v1", api_key=key, max_retries=retries) as client:
        return await client.chat.completions.create(**body)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (openai.AuthenticationError, {"key": "x"}),
        (openai.NotFoundError, {"model": "huge"}),
        (openai.BadRequestError, {"temperature": -1}),
        (openai.BadRequestError, {"messages": []}),
    ],
)
async def test_each_status_has_its_class(open_site, kind, changes):
    site = await open_site(api_keys=("k",))
    with pytest.raises(kind) as caught:
        await ask(site, **changes)
    assert caught.value.body["message"]


async def test_a_rate_limit_is_a_rate_limit_error(open_site):
    site = await open_site(api_keys=("k",), rate_limit_per_minute=1)
    await ask(site)
    with pytest.raises(openai.RateLimitError):
        await ask(site)


async def test_a_full_queue_is_told_once(open_site):
    # x-should-retry: false keeps the library from asking three times, although it would like to.
    site = await open_site(engine={"max_queue": 0})
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(site, retries=2)
    assert caught.value.status_code == 503
    assert site.engine.stats().finished == {"queue_full": 1}


async def test_a_failed_stream_raises(site):
    site.engine.fleet.hold_after = 1
    async with openai.AsyncOpenAI(base_url=site.url + "/v1", api_key="k", max_retries=0) as client:
        chunks = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
        await anext(aiter(chunks))
        site.engine.fleet.die()
        with pytest.raises(openai.APIError, match="worker"):
            _ = [chunk async for chunk in chunks]
