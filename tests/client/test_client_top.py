"""`plait top` reads the dashboard's stream."""

import asyncio
import io
import json
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
from rich.console import Console

from plait.client.top import drawn, sheets
from plait.spec.errors import ServiceError, UserError
from plait.workload.board.sheet import Sheet
from tests.server.conftest import open_site, site  # noqa: F401  (fixtures)
from tests.server.wire import ASK


def printed(sheet):
    out = io.StringIO()
    Console(width=120, file=out).print(drawn(sheet))
    return out.getvalue()


async def first(url, api_key=""):
    async with aclosing(sheets(url, api_key)) as stream:
        return await anext(stream)


async def test_it_shows_what_the_server_does(site):  # noqa: F811
    await site.post("/v1/completions", ASK)
    said = printed(await first(site.url + "/v1"))
    for words in ("tiny", "live", "completed 1", "mixed", "prefill", "length", "instance 0 is up"):
        assert words in said


async def test_a_key_is_needed_where_the_server_has_one(open_site):  # noqa: F811
    site = await open_site(api_keys=("sesame",))  # noqa: F811
    with pytest.raises(UserError, match="--api-key"):
        await first(site.url)
    assert (await first(site.url, "sesame")).title == "tiny"


async def test_nobody_there_is_said():
    with pytest.raises(ServiceError, match="cannot reach"):
        await first("http://127.0.0.1:9")


def test_a_fault_is_shown():
    assert "lost track" in printed(Sheet("tiny", "live", "0", fault="lost track"))
    assert "no core" in printed(Sheet("run", "", ""))


async def test_the_verb_prints_one_picture(site):  # noqa: F811
    command = [sys.executable, "-m", "plait", "top", "--once", "--url", site.url]
    done = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    out, _ = await done.communicate()
    assert done.returncode == 0
    assert b"tiny" in out


def test_a_journal_is_shown_where_there_is_no_torch(tmp_path):
    """The base install has none: whoever imports it here fails."""
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0, "score": 1.0}\n')
    block = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'safetensors'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.argv = ['plait', 'dash', {str(tmp_path)!r}, '--last']\n"
        "from plait.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, cwd=Path.cwd(), check=True
    )
    assert json.loads(done.stdout)["alignment"]["iterations"] == [0]
