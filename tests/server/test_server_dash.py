"""The dashboard on a running server: its stream, its guard, its files."""

import asyncio
import hashlib
import json
import re
from importlib.resources import files

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from plait.server.dash.files import PAGE, SHELL, VENDOR
from plait.server.dash.live import LiveSource
from plait.server.dash.viewers import QUEUED, Viewers
from plait.spec.slo import Slo
from plait.workload.board.sheet import Sheet, decode
from tests.server.wire import ASK

DASH = files("plait.server.dash")


async def sheets(site, count, **options):
    """The next sheets of the stream."""
    found = []
    async with site.client.get(site.url + "/dash/events", **options) as reply:
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/event-stream")
        async for line in reply.content:
            if line.startswith(b"data: "):
                found.append(decode(line[6:]))
                if len(found) == count:
                    return found
    raise AssertionError("the stream ended")


async def test_the_stream_shows_what_the_engine_does(open_site):
    site = await open_site(slo=Slo(10**12, 10**12))
    await site.post("/v1/completions", {"prompt": [10, 11, 12], "max_tokens": 4})
    await site.idle()
    [sheet] = await sheets(site, 1)
    assert (sheet.title, sheet.world, sheet.film) == ("tiny", "live", None)
    picture, stats = sheet.picture, site.engine.stats()
    assert picture.totals.tokens == stats.generation_tokens == 4
    assert dict(picture.totals.outcomes) == dict(stats.finished) == {"length": 1}
    assert picture.totals.attainment == 1.0
    [instance] = picture.instances
    shown = (instance.id, instance.role, instance.state, instance.kv_used, instance.kv_slots)
    [known] = stats.instances
    assert shown == (known.id, known.role, known.state, known.kv_used, known.kv_slots)
    [row] = picture.requests
    assert [phase for _, phase in row.phases] == ["queue", "prefill", "decode"]
    assert (row.prompt_tokens, row.tokens, row.outcome, row.met) == (3, 4, "length", True)


async def test_sheets_come_as_something_happens(site):
    site.engine.fleet.hold_after = 1
    asking = asyncio.ensure_future(site.post("/v1/completions", ASK))
    await site.load(1)
    [held] = await sheets(site, 1)
    assert (held.picture.totals.running, held.picture.instances[0].decoding) == (1, 1)
    assert held.picture.instances[0].kv_used == site.engine.stats().kv_used_slots > 0
    site.engine.fleet.release()
    assert (await asking)[0] == 200
    assert (await sheets(site, 2))[-1].picture.totals.completed == 1


async def test_nothing_of_what_was_said_is_shown(site):
    await site.post("/v1/completions", {"prompt": "hello there, what is the time?", "max_tokens": 3})
    await site.idle()
    [sheet] = await sheets(site, 1)
    assert "hello" not in msgspec.json.encode(sheet).decode()


async def test_the_stream_needs_a_key_and_the_page_does_not(open_site):
    site = await open_site(api_keys=("sesame",))
    status, text = await site.get("/dash/events")
    assert (status, json.loads(text)["error"]["type"]) == (401, "AuthenticationError")
    for path in sorted(SHELL):
        assert (await site.get(path))[0] == 200, path
    await sheets(site, 1, headers={"authorization": "Bearer sesame"})


async def test_the_page_runs_no_script_but_its_own(site):
    async with site.client.get(site.url + "/dash") as reply:
        policy, page = reply.headers["content-security-policy"], await reply.text()
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\ssrc=)", page)
    assert not re.search(r"\son\w+=|style=|https?://", page)
    sources = "".join(DASH.joinpath("page", name).read_text() for name in PAGE)
    assert not re.search(r"https?://|innerHTML|\beval\(|new Function", sources)


async def test_a_server_may_have_no_dashboard(open_site):
    site = await open_site(dash=False)
    assert (await site.get("/dash"))[0] == (await site.get("/dash/events"))[0] == 404
    assert (await site.post("/v1/completions", ASK))[0] == 200


async def test_a_live_page_has_no_past(site):
    status, text = await site.get("/dash/events?at=5")
    assert status == 400
    assert "plait dash" in text
    assert (await site.get("/dash/events?at=-1"))[0] == 400


async def test_a_slow_viewer_loses_sheets_and_holds_up_nobody(site):
    viewers = Viewers(LiveSource(site.engine, None), period_s=3600)
    with viewers.watching() as slow:
        for number in range(50):
            slow.show(b"%d" % number)
        assert slow.missed == 50 + 1 - QUEUED
        assert [await slow.queue.get() for _ in range(QUEUED)] == [b"48", b"49"]


async def test_there_is_room_for_so_many_viewers(site, monkeypatch):
    monkeypatch.setattr("plait.server.dash.viewers.MOST", 1)
    async with site.client.get(site.url + "/dash/events"):
        status, text = await site.get("/dash/events")
        assert status == 503
        assert "viewers" in text


async def test_who_leaves_is_forgotten(site):
    await sheets(site, 1)
    async with asyncio.timeout(60):
        while site.front.viewers.count:
            await site.get("/live")
    assert site.front.viewers.count == 0


async def test_a_fault_of_the_dashboard_is_said_and_stops_nothing(site, caplog):
    source = site.front.viewers.source
    source._board.see = None  # whatever it is that breaks
    status, _ = await site.post("/v1/completions", ASK)
    assert status == 200
    [sheet] = await sheets(site, 1)
    assert "lost track" in sheet.fault
    assert "cannot follow" in caplog.text


def test_vendored_files_are_those_that_were_published():
    told = json.loads(DASH.joinpath("vendor/versions.json").read_text())
    sums = {name: digest for each in told.values() for name, (_, digest) in each["files"].items()}
    assert sorted(sums) == sorted(VENDOR)
    for name, digest in sums.items():
        content = DASH.joinpath("vendor", name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest, name
        assert name in DASH.joinpath("vendor/NOTICE").read_text()
    assert sum(len(DASH.joinpath("vendor", name).read_bytes()) for name in VENDOR) < 80_000


def test_sheets_are_read_as_they_are_written():
    sheet = Sheet("a", "live", "0")
    assert decode(msgspec.json.encode(sheet)) == sheet


@pytest.mark.parametrize("kind", ["gauge", "counter", "histogram"])
async def test_grafana_asks_for_metrics_that_there_are(site, kind):
    board = json.loads(files("plait.server").joinpath("grafana.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\b(?:vllm|plait):\w+", target["expr"])
    }
    await site.post("/v1/completions", ASK)
    families = list(text_string_to_metric_families((await site.get("/metrics"))[1]))
    samples = {sample.name: family.type for family in families for sample in family.samples}
    assert asked <= samples.keys(), asked - samples.keys()
    assert kind in {samples[name] for name in asked}
