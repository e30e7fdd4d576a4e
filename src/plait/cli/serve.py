"""`plait serve MODEL`: an OpenAI-compatible server on real workers."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from plait.cost.catalog import cost_named
from plait.runtime.fleet import FleetConfig
from plait.runtime.setup import ServeConfig, open_engine
from plait.server.config import ServerConfig
from plait.server.lifespan import serve as answer
from plait.serving.admission import AdmissionConfig
from plait.serving.batcher import BatcherConfig
from plait.serving.manager import ManagerConfig


def serve(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id, or an alias of `plait pull`.")],
    name: Annotated[
        str | None, typer.Option("--served-model-name", help="Name for clients; without it, MODEL.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: any free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Accepted key, may be repeated; or set PLAIT_API_KEY.")
    ] = None,
    instances: Annotated[int, typer.Option(min=1, help="Worker processes, each with all weights.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each worker.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    exact: Annotated[
        bool, typer.Option("--exact", help="No bit of an answer depends on batching, chunking or threads.")
    ] = False,
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt with output, in tokens.")] = None,
    kv_tokens: Annotated[
        int | None, typer.Option(min=1, help="KV tokens of each instance; without it, by free memory.")
    ] = None,
    page: Annotated[int, typer.Option(min=1, help="Tokens in a KV page.")] = 16,
    step_tokens: Annotated[int, typer.Option(min=1, help="Tokens that one step computes at most.")] = 512,
    depth: Annotated[int, typer.Option(min=1, help="Steps in flight on an instance.")] = 2,
    max_rows: Annotated[int, typer.Option(min=1, help="Requests on one instance.")] = 256,
    max_queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused.")] = 4096,
    output_share: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of max_tokens that requests are presumed to use.")
    ] = 1.0,
    prefix_cache: Annotated[bool, typer.Option(help="Share the KV of equal prompt prefixes.")] = True,
    overload_status: Annotated[int, typer.Option(help="Answer to a full queue: 503, 429 or 529.")] = 503,
    rate_limit: Annotated[int | None, typer.Option(min=1, help="Requests a minute for each API key.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds for requests that name no timeout.")
    ] = None,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds that requests may go on after SIGTERM.")
    ] = 30.0,
    journal: Annotated[Path | None, typer.Option(help="Write every event and command to this file.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Start workers with Ray: local, or a cluster's address.")
    ] = None,
    pace: Annotated[
        str | None, typer.Option(help="Answer no earlier than this cost file says; results are 'paced'.")
    ] = None,
) -> None:
    """Serve MODEL over HTTP until SIGTERM or Ctrl-C."""
    began = time.monotonic()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    keys = tuple(api_key or filter(None, os.environ.get("PLAIT_API_KEY", "").split(",")))
    server = ServerConfig(
        host=host,
        port=port,
        api_keys=keys,
        overload_status=overload_status,
        rate_limit_per_minute=rate_limit,
        default_timeout_s=timeout,
        drain_s=drain,
    )
    manager = ManagerConfig(
        model=name or model,
        page=page,
        admission=AdmissionConfig(max_queue=max_queue, max_rows=max_rows, output_share=output_share),
        batcher=BatcherConfig(step_tokens=step_tokens, depth=depth, prefix_cache=prefix_cache),
    )
    config = ServeConfig(
        model=model,
        name=name,
        threads=threads,
        dtype=dtype,
        exact=exact,
        max_len=max_model_len,
        kv_tokens=kv_tokens,
        manager=manager,
        journal=journal,
        cluster=cluster,
        pace=cost_named(pace) if pace else None,
        fleet=FleetConfig(instances=instances),
    )
    uvloop.run(_run(config, server, began))


async def _run(config: ServeConfig, server: ServerConfig, began_s: float) -> None:
    engine = open_engine(config)
    console = Console(stderr=True, highlight=False)

    def ready(url: str) -> None:
        paced = " (paced)" if config.pace else ""
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        console.print(f"ready after {time.monotonic() - began_s:.1f} s: {url}/v1{paced}")

    await engine.start()
    try:
        await answer(engine, server, ready)
    finally:
        await engine.close()
