"""The demo: a real server of its own, a few questions, a short load, and a report of what happened."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from plait.client.chat import ChatConfig, answer
from plait.client.endpoint import EndpointConfig
from plait.client.load import LoadConfig, generate
from plait.client.report import Exchange, write_report
from plait.spec.errors import ServiceError
from plait.spec.slo import Slo
from plait.workload.journal import read_journal
from plait.workload.profile import Profile
from plait.workload.result import RequestRecord, Summary, as_json
from plait.workload.timeline import timeline

QUESTIONS = (
    "What is the capital of France?",
    "Name three things that a good engineer does before writing code.",
    "Why is the sky blue? Answer in one sentence.",
)


@dataclass(frozen=True, slots=True)
class DemoConfig:
    """What the demo serves and sends."""

    model: str = "smollm2-135m"
    instances: int = 2
    """Worker processes."""
    out: Path = Path("runs/demo")
    """Folder of everything that the demo writes."""
    requests: int = 40
    """Requests of the load."""
    rate_hz: float = 2.0
    """Mean arrivals a second."""
    answer_tokens: int = 60
    """Most tokens of an answer to a question."""
    slo: Slo = field(default_factory=lambda: Slo(ttft_ns=1_000_000_000, tpot_ns=100_000_000))
    """Objectives that the report counts against."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found."""

    summary: Summary
    records: tuple[RequestRecord, ...]
    report: Path


async def run_demo(
    config: DemoConfig, say: Callable[[str], None], done: Callable[[RequestRecord], None]
) -> DemoResult:
    """Serve, ask, load, stop, report. `say` gets lines for a person, `done` each finished request.

    Raises:
        ServiceError: the server does not start or an answer breaks off.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    async with _server(config) as url:
        say(f"serving at {url}/v1 with {config.instances} instances")
        exchanges = [await _ask(config, url, question, say) for question in QUESTIONS]
        profile = Profile("poisson", config.rate_hz, config.requests, "96", "32", seed=0)
        target = EndpointConfig(url, config.model, ignore_eos=True)
        load = await generate(LoadConfig(target, warmup=2), profile.rows(), done)
    return _report(config, profile, exchanges, load.records)


def _report(
    config: DemoConfig,
    profile: Profile,
    exchanges: list[Exchange],
    records: tuple[RequestRecord, ...],
) -> DemoResult:
    summary = Summary.of(records, config.slo)
    meta = {"model": config.model, "instances": config.instances, "profile": profile.json()}
    (config.out / "result.json").write_text(json.dumps(as_json(summary, records, meta), indent=1) + "\n")
    history = read_journal(config.out / "journal.jsonl")
    drawn = timeline(history.entries)
    drawn.save(config.out / "perfetto.json")
    report = config.out / "report.html"
    write_report(report, meta, exchanges, summary, records, drawn.events)
    return DemoResult(summary, records, report)


async def _ask(config: DemoConfig, url: str, question: str, say: Callable[[str], None]) -> Exchange:
    target = ChatConfig(url, config.model, max_tokens=config.answer_tokens, temperature=0.0)
    messages = [{"role": "user", "content": question}]
    text = "".join([part async for part in answer(target, messages)]).strip()
    say(f"  Q: {question}\n  A: {text}")
    return Exchange(question, text)


@contextlib.asynccontextmanager
async def _server(config: DemoConfig) -> AsyncIterator[str]:
    """`plait serve` as a user would start it, on a free port; gives its URL, and drains it at the end."""
    journal, log = config.out / "journal.jsonl", config.out / "server.log"
    command = ["-m", "plait", "serve", config.model, "--port", "0", "--journal", str(journal)]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            "--instances",
            str(config.instances),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        try:
            if not url:
                raise ServiceError(f"the server did not start; {log} says why:\n{log.read_text()[-2000:]}")
            yield url
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
