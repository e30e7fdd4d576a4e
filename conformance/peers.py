"""Programs of others, each unmodified in a virtual environment of its own: clients of our server, and engines
that ours is measured against."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE.parent / "peers"
KEPT = (
    ".pyenv/versions/3.{minor}.*/bin/python3.{minor}",
    ".local/share/uv/python/cpython-3.{minor}.*/bin/python3.{minor}",
)
"""Where pyenv and uv keep Pythons that are not on the path."""


class Missing(Exception):
    """A program cannot be installed here."""


@dataclass(frozen=True)
class Peer:
    """An installed program."""

    name: str
    folder: Path

    def run(self, *command: str, cwd: Path, log: Path, **environment: str) -> int:
        """Run one of its programs with output to `log`; returns the exit status."""
        program = str(self.folder / "bin" / command[0])
        with log.open("w") as sink:
            sink.write(" ".join(command) + "\n")
            sink.flush()
            env = {**os.environ, **environment}
            return subprocess.run(
                [program, *command[1:]], cwd=cwd, env=env, stdout=sink, stderr=sink, timeout=1800, check=False
            ).returncode

    def version(self, package: str) -> str:
        """Version of the package."""
        code = f"from importlib.metadata import version; print(version({package!r}))"
        python = str(self.folder / "bin" / "python")
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def install(name: str, requirements: Path = HERE / "requirements", python: str | None = None) -> Peer:
    """The program of `NAME.txt` in `requirements`, installed anew when that file has changed.

    `NAME.bare.txt`, where there is one, names what is installed after that and without its dependencies.

    Args:
        python: version that it needs, such as 3.12; None: that of this process.

    Raises:
        Missing: pip cannot install it; the message ends with pip's last words. Or there is no such Python.
    """
    wanted, bare = requirements / f"{name}.txt", requirements / f"{name}.bare.txt"
    folder = PEERS / name
    mark = folder / "installed.sha256"
    digest = hashlib.sha256(wanted.read_bytes() + (bare.read_bytes() if bare.exists() else b"")).hexdigest()
    if mark.is_file() and mark.read_text() == digest:
        return Peer(name, folder)
    sys.stderr.write(f"installing {name} into {folder}: minutes, once\n")
    PEERS.mkdir(exist_ok=True)
    subprocess.run([_python(python), "-m", "venv", str(folder)], check=True)
    _pip(folder, "-r", str(wanted))
    if bare.exists():
        _pip(folder, "--no-deps", "-r", str(bare))
    mark.write_text(digest)
    return Peer(name, folder)


def _python(version: str | None) -> str:
    """A Python of at least this version."""
    if version is None or sys.version_info[:2] >= tuple(map(int, version.split("."))):
        return sys.executable
    for minor in range(int(version.split(".")[1]), 20):
        on_path = shutil.which(f"python3.{minor}")
        kept = [str(path) for each in KEPT for path in sorted(Path.home().glob(each.format(minor=minor)))]
        for found in ([on_path] if on_path else []) + kept:
            if subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
                return found
    raise Missing(f"it needs Python {version} or newer: put a python{version} on the path")


def _pip(folder: Path, *what: str) -> None:
    index = os.environ.get("TORCH_INDEX")
    extra = ["--extra-index-url", index] if index else []
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *extra, *what]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"pip cannot install {folder.name}: {done.stderr.strip()[-500:]}")
