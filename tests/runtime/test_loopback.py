"""Every socket that our processes listen on is reached from this host only, unless more was asked for."""

import os
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from plait.runtime.align_setup import open_alignment
from plait.runtime.hub import Hub
from plait.runtime.launch import loopback
from plait.runtime.setup import ServeConfig, open_engine
from plait.server.config import ServerConfig
from plait.serving.manager import ManagerConfig
from plait.spec.cluster import Instance, Placement, Role
from tests.runtime.alignments import furnish, recipe
from tests.runtime.test_engine import FLEET, answers
from tests.server.conftest import serving
from tests.tiny import tiny_folder

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="there is no /proc/net/tcp")
LISTENS = "0A"


def listening(pid: int) -> list[str]:
    """Addresses that a process listens on, of TCP."""
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:  # closed meanwhile
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            row = line.split()
            if row[3] == LISTENS and row[9] in inodes:
                found.append(row[1].partition(":")[0])
    return [address_of(text) for text in found]


def environment_of(pid: int) -> list[bytes]:
    """What a process was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def address_of(text: str) -> str:
    """As /proc has it: words of four bytes, each from its last byte to its first."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return str(ip_address(b"".join(words)))


def test_addresses_are_read():
    assert address_of("0100007F") == "127.0.0.1"
    assert address_of("00000000") == "0.0.0.0"
    assert address_of("00000000000000000000000001000000") == "::1"


@pytest.mark.usefixtures("quick_workers")
async def test_a_server_and_its_workers(tmp_path):
    roles = Role.PREFILL, Role.DECODE
    placement = Placement(tuple(Instance(i, role, tp=2) for i, role in enumerate(roles)))
    config = ServeConfig(
        str(tiny_folder(tmp_path)),
        kv_tokens=1024,
        manager=ManagerConfig(placement=placement),
        fleet=replace(FLEET, instances=2),
    )
    engine = open_engine(config)
    async with serving(engine, ServerConfig()):
        await answers(engine, 2)  # so that links are made
        workers = [part.pid for member in engine.fleet.members.values() for part in member.parts]
        found = [address for pid in (os.getpid(), *workers) for address in listening(pid)]
    assert len(found) >= 2 + len(workers)
    assert all(ip_address(address).is_loopback for address in found), found


async def test_ranks_of_a_trainer(tmp_path):
    furnish(tmp_path)
    async with open_alignment(recipe(tmp_path), tmp_path, tmp_path / "out") as alignment:
        ranks = [process.pid for process in alignment.trainer.crew.processes]
        found = [address for pid in ranks for address in listening(pid)]
        wishes = [environment_of(pid) for pid in ranks]
    assert all(b"GLOO_SOCKET_IFNAME=lo" in each for each in wishes), "a host's name may be that of a network"
    assert found
    assert all(ip_address(address).is_loopback for address in found), found


def test_who_has_named_an_interface_means_it(monkeypatch):
    assert loopback()["GLOO_SOCKET_IFNAME"].startswith("lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert loopback()["GLOO_SOCKET_IFNAME"] == "eth7"


@pytest.mark.parametrize("secret", [b"", b"short"])
async def test_without_a_secret_no_worker_is_expected(secret):
    hub = Hub(secret)
    try:
        with pytest.raises(ValueError, match="16 bytes"):
            hub.expect(b"0.1.0")
    finally:
        hub.close()
