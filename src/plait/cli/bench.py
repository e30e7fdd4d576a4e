"""`plait bench serve`: load for any OpenAI-compatible endpoint."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer

from plait import __version__
from plait.cli import report, workload
from plait.client.endpoint import EndpointConfig
from plait.client.load import LoadConfig, generate
from plait.client.prompts import Prompts
from plait.spec.errors import UserError
from plait.spec.slo import Slo
from plait.workload.profile import Profile
from plait.workload.result import Summary
from plait.workload.trace import TraceRow

bench = typer.Typer(no_args_is_help=True, help="Measure a server from outside.")


@bench.callback()
def _root() -> None:
    """Measure a server from outside."""


def loading(
    url: Annotated[str, typer.Option(help="Root of the server, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="Name of the model as the server knows it.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Use chat completions instead of completions.")
    ] = False,
    process: workload.Process = "poisson",
    rate: workload.Rate = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Most requests in flight; `closed` needs it.")
    ] = None,
    count: workload.Count = 64,
    input_len: workload.PromptLength = "128",
    output_len: workload.OutputLength = "64",
    cv: workload.Cv = 2.0,
    burst: workload.Burst = 8,
    trace: workload.Trace = None,
    form: workload.Format = "azure",
    seed: workload.Seed = 0,
    vocab: Annotated[int, typer.Option(min=101, help="Random token ids stay below this.")] = 1000,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Ask for exactly the output length.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.0,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the clock starts.")] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds that one request may take.")] = 600.0,
    api_key: Annotated[str, typer.Option(envvar="PLAIT_API_KEY", help="Sent as a bearer token.")] = "",
    slo: workload.Objectives = None,
    json_out: workload.Json = None,
) -> "Loading":
    """A load that is to be sent. Raises UserError for a workload that cannot be."""
    if process == "closed" and concurrency is None:
        raise UserError("a closed loop needs --concurrency: how many requests it holds in flight")
    objectives = Slo.parse(slo) if slo else None
    profile = Profile(process, rate, count, input_len, output_len, cv, burst, trace, form, seed=seed)
    endpoint = EndpointConfig(url, model, chat, api_key, timeout, ignore_eos, temperature)
    config = LoadConfig(endpoint, Prompts(seed, vocab), concurrency, warmup)
    return Loading(config, profile, profile.rows(), objectives, json_out)


@bench.command()
@wraps(loading, assigned=())
def serve(**options: Any) -> None:
    """Send a workload; report TTFT, TPOT, ITL, E2E, SLO attainment and goodput."""
    loading(**options).run()


@dataclass(frozen=True, slots=True)
class Loading:
    """What `plait bench serve` was told."""

    config: LoadConfig
    profile: Profile
    rows: Sequence[TraceRow]
    slo: Slo | None
    json_out: str | None

    def run(self) -> Summary:
        """Send it and report."""
        with report.progress() as bar:
            task = bar.add_task("sending", total=len(self.rows))
            load = asyncio.run(generate(self.config, self.rows, lambda record: bar.advance(task)))
        to, concurrency = self.config.endpoint, self.config.concurrency
        asked = {"url": to.url, "model": to.model, "chat": to.chat, "concurrency": concurrency}
        asked |= {"ignore_eos": to.ignore_eos}
        found = {"token_ids": load.token_ids, "late_ms": load.late_ns / 1e6}
        meta = {"world": "measured", "plait": __version__, **asked, **found, "profile": self.profile.json()}
        summary = Summary.of(load.records, self.slo)
        report.show(f"{to.model} at {to.url}", summary, load.records, meta, self.json_out)
        report.warn(sorted({record.error for record in load.records if record.error}))
        return summary
