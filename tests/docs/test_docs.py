"""Documents do what they show, lead where they point, and name what there is."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import DOCUMENTS, LANGUAGES, ROOT, Block, blocks, prose

BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
COMMANDS = [block for block in BLOCKS if block.language == "console"]
PROGRAMS = [block for block in BLOCKS if block.language == "python"]
SESSIONS = sorted({block.document for block in BLOCKS if block.language == "bash"})
PACKAGES = sorted(path.parent.name for path in (ROOT / "src" / "plait").glob("*/__init__.py"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment whose `plait` is this source tree, whatever is installed."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "plait").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m plait "$@"\n')
    (tools / "plait").chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The folder that commands run in."""
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def run(command: str, folder: Path, env: dict[str, str]) -> str:
    """The output of a shell command that must succeed."""
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def needs_model(command: str) -> None:
    """Skip, with the reason, a command on the default model where it cannot be had."""
    if "smollm2-135m" in command:
        from plait.model.hub import resolve
        from plait.spec.errors import UserError

        pytest.importorskip("torch", reason="needs the engine extra")
        try:
            resolve("smollm2-135m")
        except UserError as error:
            pytest.skip(f"the default model cannot be had: {error}")


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.name)
def test_commands_run(block: Block, empty: Path, env: dict[str, str]):
    for command in block.commands:
        needs_model(command)
        if command.startswith("make "):
            if shutil.which("make") is None:
                pytest.skip("make is not installed")
            run(f"{command} --dry-run", ROOT, env)
        else:
            run(command, empty, env)


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
def test_programs_run(block: Block, empty: Path, env: dict[str, str]):
    needs_model(block.body)
    subprocess.run([sys.executable, "-c", block.body], cwd=empty, env=env, check=True)


@pytest.fixture
def port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def served() -> Iterator[list[subprocess.Popen[str]]]:
    """Servers that a session starts; they are stopped with it."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for server in running:
        server.terminate()
        server.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("document", SESSIONS, ids=lambda path: path.name)
def test_sessions_run(document: Path, empty: Path, env: dict[str, str], port: int, served: list):
    """The server listens on a free port instead of 8000; the environment is active already."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    for block in blocks(document):
        if block.language != "bash":
            continue
        body = block.body.replace("source .venv/bin/activate\n", "").replace(":8000", f":{port}")
        needs_model(body)
        if body.startswith("plait serve"):
            command = ["bash", "-c", f"exec {body.strip()} --port {port}"]
            server = subprocess.Popen(command, cwd=empty, env=env, stderr=subprocess.PIPE, text=True)
            served.append(server)
            assert any(line.startswith("ready") for line in server.stderr), "the server did not start"
        else:
            out = run(body.replace("curl ", "curl --silent --show-error --fail-with-body "), empty, env)
            assert '"error"' not in out


def test_blocks_say_what_they_are():
    """A fence without a language would be run by nobody and checked by nobody."""
    assert {block.name: block.language for block in BLOCKS if block.language not in LANGUAGES} == {}
    assert COMMANDS
    assert SESSIONS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path):
    broken = []
    for target in LINK.findall(prose(document)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def anchors(document: Path) -> set[str]:
    """Addresses of a document's headings, as they are made on GitHub."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_architecture_names_every_package_and_no_other():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(named) == PACKAGES


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_verbs_exist(name: str):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / name).read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE))
    assert named
    assert named <= targets


def test_the_readme_names_every_verb_and_no_other():
    import typer

    from plait.cli.main import app

    verbs = set(typer.main.get_command(app).commands)
    named = set(re.findall(r"^\| `plait ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named == verbs


def test_contributing_maps_lines_to_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:tests|bench|docs|src|conformance)/[\w./]*)`", text)
    assert len(paths) >= 8
    made = {"docs/reference"}  # by `make docs`, and ignored by git
    assert [path for path in paths if path not in made and not (ROOT / path).exists()] == []
