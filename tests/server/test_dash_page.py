"""The page itself, in Chromium: what it shows of live servers, of journals and of runs."""

import asyncio
import json
import random
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from plait.cost.by_group import llama_8b
from plait.cost.fitted import Fitted
from plait.search.batching import Width
from plait.server.config import ServerConfig
from plait.server.dash.app import DashServer
from plait.server.dash.recorded import RecordedSource
from plait.serving.elasticity import ElasticConfig
from plait.serving.manager import ManagerConfig
from plait.sim.copies import Network
from plait.sim.scenario import Scenario
from plait.spec.cluster import Instance, Link, Placement, Role
from plait.spec.slo import Slo
from plait.workload.journal import Journal
from plait.workload.profile import Profile
from plait.workload.trace import TraceRow
from tests.server.browser import opened, until
from tests.server.wire import ASK

pytestmark = pytest.mark.slow
SLO = Slo(400_000_000, 30_000_000)
NETWORK = Network(131_072, Link(50e9, 20_000), Link(25e9, 30_000))
P, D, F, G = Role.PREFILL, Role.DECODE, Role.ELASTIC_PREFILL, Role.ELASTIC_DECODE
PARTED = (P, P, D, D, D)
ELASTIC = (Role.ELASTIC,) * 6


def record(path: Path, roles, rows, cost, slots, **settings):
    """A simulated run's journal."""
    placement = Placement(tuple(Instance(i, role) for i, role in enumerate(roles)))
    config = ManagerConfig(model="llama-3-8b", placement=placement, **settings)
    scenario = Scenario(placement, cost, slots, config, NETWORK)
    with Journal(
        path, asdict(scenario.config), {"world": "sim", "plait": "0", "model": "llama-3-8b"}
    ) as journal:
        scenario.run(rows, [journal.append])


def parted_journal(path: Path) -> Path:
    rows = Profile("gamma", rate_hz=9.0, count=260, prompt="300-2500", output="20-220", seed=4).rows()
    record(path, PARTED, rows, Fitted(9e6, 9e4, 1.0, 12.0, 11e6, 110.0, 1.1e5), 30_000)
    return path


def elastic_journal(path: Path) -> Path:
    cost = llama_8b(Fitted(0, 0, 0, 0, 9e6, 82.0, 2e4))
    widths = tuple(
        Width(n, model.prefill_ns, model.prefill_token_ns, model.prefill_square_ns)
        for n, model in cost.models.items()
    )
    rng, now_s, rows = random.Random(3), 0.0, []
    for number in range(90):
        now_s += rng.expovariate(3.0)
        prompt = 60_000 if number % 9 == 5 else rng.randint(200, 5000)
        rows.append(TraceRow(int(now_s * 1e9), prompt, rng.randint(20, 160)))
    record(path, ELASTIC, rows, cost, 200_000, elastic=ElasticConfig(widths, chunk_ns=0.3e9))
    return path


@asynccontextmanager
async def shown(path: Path, **settings):
    """`plait dash PATH` on the test's own loop; gives its URL."""
    listening = asyncio.get_running_loop().create_future()
    config = ServerConfig(port=0, **settings)
    server = DashServer(RecordedSource(path, SLO), config, listening.set_result)
    running = asyncio.ensure_future(server._serve())
    try:
        yield await listening
    finally:
        server.should_exit = True
        await running


async def settled(page, url):
    """The page, once a journal is read to its end."""
    await page.goto(url)
    await page.wait_for_selector("#tiles")
    await until(page, "!document.querySelector('.film small')")
    await until(page, "document.querySelectorAll('#curves canvas').length >= 6")


async def text(page, selector):
    return " ".join((await page.inner_text(selector)).split())


def fine(page, url):
    """No script failed, nothing broke the policy, and nobody else was asked for anything."""
    assert page.complaints == []
    root = url.removesuffix("/dash")
    assert [asked for asked in page.requested if not asked.startswith((root, "data:"))] == []


async def test_a_journal_of_prefill_and_decode_apart(tmp_path):
    path = parted_journal(tmp_path / "journal.jsonl")
    async with shown(path) as url, opened() as page:
        await settled(page, url)
        assert await page.locator("#instances tbody tr").count() == len(PARTED)
        assert await text(page, "#world") == "sim"
        assert "TTFT 400 ms" in await text(page, "#slo")
        assert "260 completed" in await text(page, "[data-name=running]")
        assert int(await page.get_attribute("#lanes", "data-rows")) == len(PARTED)
        assert int(await page.get_attribute("#lanes", "data-bars")) > 20
        assert await page.locator(".waterfall .is-move").count() > 10
        assert await page.locator(".waterfall .is-decode").count() > 10
        await look_back(page)
        fine(page, url)
        await page.screenshot(path=tmp_path / "parted.png", full_page=True)


async def seek(page, share):
    """Have the page show the moment at this share of the film."""
    at = await page.evaluate(
        """(share) => {
            const film = document.getElementById("film");
            film.value = film.max * share;
            film.dispatchEvent(new Event("input", { bubbles: true }));
            return film.value;
        }""",
        share,
    )
    await until(page, f"document.querySelector('#now').dataset.at === '{at}'")


async def look_back(page):
    """The slider shows an earlier moment, and the way back."""
    await seek(page, 0.4)
    assert "260 completed" not in await text(page, "[data-name=running]")
    assert await text(page, "[data-name=running] strong") != "0"
    await page.click("text=to the end")
    await until(page, "document.querySelector('[data-name=running]').innerText.includes('260')")


async def test_elastic_groups_say_why(tmp_path):
    path = elastic_journal(tmp_path / "journal.jsonl")
    async with shown(path) as url, opened(dark=True) as page:
        await settled(page, url)
        assert "scale-up" in await text(page, "#log") or "instances" in await text(page, "#log")
        widths = set()
        for tenth in range(1, 10):
            await seek(page, tenth / 10)
            widths |= set(await page.locator("#groups .chip").all_inner_texts())
        assert widths, "at no moment did instances compute together"
        fine(page, url)
        await page.screenshot(path=tmp_path / "elastic.png", full_page=True)


def align_folder(folder: Path) -> Path:
    """What `plait align` leaves behind, without the weights."""
    rng = random.Random(5)
    rows = []
    for at in range(40):
        rise = 1 - 0.9**at
        rows.append(
            {
                "iteration": at,
                "score": 2 * rise + rng.gauss(0, 0.08),
                "reward": 1.9 * rise + rng.gauss(0, 0.08),
                "kl": 0.06 * rise + abs(rng.gauss(0, 0.003)),
                "kl_coefficient": 0.05,
                "actor/loss": -0.02 * rise + rng.gauss(0, 0.004),
                "critic/loss": 0.4 * 0.93**at,
                "actor/entropy": 5.5 - rise,
                "seconds/generation": 1.4 + rng.random() / 5,
                "seconds/reading": 0.5,
                "seconds/training": 0.9,
                "seconds/weights": 0.1,
            }
        )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = []
    for rank in range(2):
        for number in range(6):
            actor, begin = rank == number % 2, 1e6 + number * 60e3
            name = f"{'actor' if actor else 'critic'} {'FB'[number // 3]}{number}"
            place = {"cat": "train", "pid": rank, "tid": 0, "ph": "X"}
            events.append({"name": name, **place, "ts": begin, "dur": 55e3})
    (folder / "timeline.json").write_text(json.dumps({"traceEvents": events}))
    return folder


async def test_a_run_of_align(tmp_path):
    async with shown(align_folder(tmp_path)) as url, opened() as page:
        await page.goto(url)
        await page.wait_for_selector("#align canvas")
        assert "iteration 39" in await text(page, "#align h2")
        assert await page.locator("#align .chart").count() >= 5
        assert int(await page.get_attribute("#ranks", "data-rows")) == 2
        fine(page, url)
        await page.screenshot(path=tmp_path / "align.png", full_page=True)


def compress_folder(folder: Path) -> Path:
    """What `plait compress` leaves behind, without the weights."""
    rng, lines, best = random.Random(2), [], None
    for _ in range(80):
        bits = [rng.choice([2.0, 3.0, 4.0, 6.0, 8.0]) for _ in range(12)]
        policy = {"v": 1, "units": {f"layer{i}": {"weight_bits": each} for i, each in enumerate(bits)}}
        score = 4 - 12 / (sum(bits) / 12) + rng.gauss(0, 0.15)
        label = {"space": "s", "policy": policy, "fidelity": "L0", "protocol": "p", "seed": 0}
        lines.append(json.dumps({**label, "metric": {"score": score}, "seconds": 2.5, "v": 1}) + "\n")
        if best is None or score > best[0]:
            best = score, policy
    (folder / "labels.jsonl").write_text("".join(lines))
    (folder / "best.json").write_text(json.dumps(best[1]))
    return folder


async def test_a_run_of_compress(tmp_path):
    async with shown(compress_folder(tmp_path)) as url, opened(dark=True) as page:
        await page.goto(url)
        await page.wait_for_selector("#front canvas")
        assert "80 policies" in await text(page, "#front h2")
        assert "chosen" in await text(page, "#front .u-legend")
        fine(page, url)
        await page.screenshot(path=tmp_path / "compress.png", full_page=True)


async def test_a_live_server_and_its_key(open_site, tmp_path):
    site = await open_site(api_keys=("sesame",), slo=SLO)
    bearer = {"authorization": "Bearer sesame"}
    async with opened() as page:
        await page.goto(site.url + "/dash")
        await page.fill("#key input", "wrong")
        async with page.expect_response("**/dash/events") as refusal:
            await page.click("#key button")
        assert (await refusal.value).status == 401
        await page.fill("#key input", "sesame")
        await page.click("#key button")
        await page.wait_for_selector("#tiles")
        assert await text(page, "#world") == "live"
        for _ in range(3):
            assert (await site.post("/v1/completions", ASK, headers=bearer))[0] == 200
        await until(page, "document.querySelector('[data-name=running]').innerText.includes('3 completed')")
        assert await page.locator(".waterfall tbody tr").count() == 3
        refused = [each for each in page.complaints if "401" not in each]
        assert refused == []


async def test_a_page_whose_server_is_gone_says_so(tmp_path):
    path = parted_journal(tmp_path / "journal.jsonl")
    async with opened() as page:
        async with shown(path) as url:
            await settled(page, url)
            assert await text(page, "#link") == "connected"
        await until(page, "document.querySelector('#link').innerText !== 'connected'")


def test_the_settings_of_pages_are_those_of_servers():
    assert replace(ServerConfig(), slo=SLO).slo == SLO
