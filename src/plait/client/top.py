"""What `plait top` shows: the dashboard's sheets as tables for a terminal."""

from collections.abc import AsyncIterator

import aiohttp
import msgspec
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from plait.client.sse import SseParser
from plait.spec.errors import ServiceError, UserError
from plait.workload.board.picture import Picture, RequestRow
from plait.workload.board.sheet import Sheet, decode

REQUESTS, REMARKS = 10, 8
"""Lines of each."""
METER = 20
"""Characters of a full KV pool."""


async def sheets(url: str, api_key: str = "") -> AsyncIterator[Sheet]:
    """The dashboard's stream of a running server.

    Raises:
        UserError: it wants another key, or has no dashboard.
        ServiceError: it cannot be reached, or the stream ended.
    """
    base = url.rstrip("/").removesuffix("/v1").removesuffix("/dash")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    patience = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
    try:
        async with (
            aiohttp.ClientSession(timeout=patience) as session,
            session.get(f"{base}/dash/events", headers=headers) as reply,
        ):
            if reply.status in (401, 404):
                raise UserError(f"{base} answers {reply.status}: check --url and --api-key")
            if reply.status != 200:
                raise ServiceError(f"{base} answers {reply.status}")
            parser = SseParser()
            async for chunk in reply.content.iter_any():
                for event in parser.feed(chunk):
                    yield decode(event.data)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ServiceError(f"cannot reach {base}: {error or type(error).__name__}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ServiceError(f"{base} sends no sheets that this version reads: {error}") from error
    raise ServiceError(f"{base} ended the stream")


def drawn(sheet: Sheet) -> Group:
    """One sheet for the terminal."""
    head = Text.assemble((sheet.title, "bold"), f"  {sheet.world}")
    if sheet.fault:
        return Group(head, Text(sheet.fault, style="red"))
    picture = sheet.picture
    if picture is None:
        return Group(head, Text("no core ran here"))
    head.append(f"  {picture.now_us / 1e6:,.1f} s", style="dim")
    return Group(
        head, _figures(picture), _instances(picture), *_groups(picture), _requests(picture), _log(picture)
    )


def _figures(picture: Picture) -> Table:
    totals, latency = picture.totals, picture.latency
    table = Table.grid(padding=(0, 3))
    cells = [
        f"waiting {totals.waiting:,}",
        f"running {totals.running:,}",
        f"completed {totals.completed:,}",
        f"TTFT {_ms(latency.ttft_p50_ms)} p99 {_ms(latency.ttft_p99_ms)}",
        f"TPOT {_ms(latency.tpot_p50_ms)} p99 {_ms(latency.tpot_p99_ms)}",
    ]
    if totals.attainment is not None:
        goodput = "" if totals.goodput is None else f", goodput {totals.goodput:.2f} /s"
        cells.append(f"SLO {totals.attainment:.1%}{goodput}")
    table.add_row(*cells)
    return table


def _instances(picture: Picture) -> Table:
    table = Table("id", "role", "now", "group", "prefill", "decode", "other", "KV", box=None, expand=True)
    for each in picture.instances:
        share = each.kv_used / each.kv_slots if each.kv_slots else 0.0
        meter = "█" * round(share * METER)
        group = " ".join(map(str, each.group)) if len(each.group) > 1 else ""
        now = "down" if each.state == "down" else each.work or "idle"
        counts = (str(count or "") for count in (each.prefilling, each.decoding, each.holding))
        style = "dim" if each.state == "down" else None
        table.add_row(
            str(each.id), each.role, now, group, *counts, f"{meter:<{METER}} {share:.0%}", style=style
        )
    return table


def _groups(picture: Picture) -> list[Text]:
    found = []
    for group in picture.groups:
        members = " ".join(map(str, group.members))
        found.append(Text(f"×{len(group.members)} {members}: {group.work}, {group.rows} rows; {group.why}"))
    return found


def _requests(picture: Picture) -> Table:
    table = Table("request", "in", "out", "TTFT", "phases", box=None, expand=True)
    for row in picture.requests[-REQUESTS:]:
        first = None if row.first_us is None else (row.first_us - row.phases[0][0]) / 1e3
        style = "red" if row.met is False else None
        phases = _phases(row, picture.now_us)
        table.add_row(
            str(row.id), f"{row.prompt_tokens:,}", f"{row.tokens:,}", _ms(first), phases, style=style
        )
    return table


def _phases(row: RequestRow, now_us: int) -> str:
    ends = [*(at for at, _ in row.phases[1:]), now_us if row.end_us is None else row.end_us]
    spans = [f"{phase} {_ms((end - at) / 1e3)}" for (at, phase), end in zip(row.phases, ends, strict=True)]
    return ", ".join(spans) + (f", {row.outcome}" if row.outcome else "")


def _log(picture: Picture) -> Table:
    table = Table("s", "what", "", box=None, expand=True)
    for remark in picture.log[:REMARKS]:
        times = f" ×{remark.times}" if remark.times > 1 else ""
        table.add_row(f"{remark.at_us / 1e6:,.2f}", remark.kind, escape(remark.text) + times)
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e3:,.1f} s" if value >= 10_000 else f"{value:,.1f} ms"
