"""Third-party clients against our server: `make conformance [CLIENTS="lm-eval guidellm"]`.

Each client is installed unmodified into peers/NAME once. Prints a table; exits 0 only if every
client was run and content.
"""

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import checks
from peers import HERE, Missing
from rich.console import Console
from rich.table import Table
from served import PLAIT, served

MODEL_NAME = "under-test"
OUT = HERE.parent / "runs" / "conformance"
CHECKS: dict[str, tuple[checks.Check, str]] = {
    "openai-python": (checks.openai_python, "real"),
    "schemathesis": (checks.schemathesis, "tiny"),
    "guidellm": (checks.guidellm, "open"),
    "locust": (checks.locust, "open"),
    "aiperf": (checks.aiperf, "open"),
    "vllm-bench": (checks.vllm_bench, "open"),
    "inference-perf": (checks.inference_perf, "open"),
    "lm-eval": (checks.lm_eval, "open"),
    "lm-eval-apart": (checks.lm_eval, "apart"),
    "lm-eval-elastic": (checks.lm_eval, "elastic"),
    "lm-eval-killed": (checks.lm_eval_killed, "two"),
}
"""Client to its check and the server that it needs."""


def main() -> None:
    """Run the wanted clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", help=f"of {', '.join(CHECKS)}; all unless told")
    wanted = parser.parse_args().clients or list(CHECKS)
    unknown = [client for client in wanted if client not in CHECKS]
    if unknown:
        parser.error(f"unknown clients: {', '.join(unknown)}")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    table = Table("client", "verdict", "what")
    content = True
    for client in wanted:
        verdict, words = attempt(client)
        content = content and verdict == "ok"
        table.add_row(client, verdict, words)
    Console().print(table)
    sys.exit(0 if content else 1)


def attempt(client: str) -> tuple[str, str]:
    """(ok, failed or missing; what to say about it)."""
    check, kind = CHECKS[client]
    out = OUT / client
    out.mkdir()
    folder, options = SERVERS[kind]
    try:
        with served(
            folder(), "tiny" if kind == "tiny" else "smollm2", out / "server.log", *options
        ) as server:
            return "ok", check(server, out)
    except Missing as error:
        return "missing", str(error)
    except (checks.Failed, RuntimeError) as error:
        return "failed", str(error)


def real_model() -> Path:
    """Folder of the default model, fetched if need be."""
    done = subprocess.run([*PLAIT, "pull", "smollm2-135m"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip().splitlines()[-1])


def tiny_model() -> Path:
    """Folder of a two-layer random model, as the tests make it."""
    sys.path.insert(0, str(HERE.parent))
    from tests.tiny import tiny_folder

    return tiny_folder(OUT, max_position_embeddings=256)


FLOAT = ("--dtype", "float32")
EXACT = ("--instances", "1", *FLOAT)
SERVERS: dict[str, tuple[Callable[[], Path], tuple[str, ...]]] = {
    "tiny": (tiny_model, ("--instances", "1", "--api-key", checks.KEY)),
    "real": (real_model, (*EXACT, "--api-key", checks.KEY)),
    "open": (real_model, EXACT),
    "two": (real_model, ("--instances", "2", *FLOAT)),
    "apart": (real_model, ("--instances", "2", "--prefill", "1", "--decode", "1", *FLOAT)),
    "elastic": (real_model, ("--instances", "3", "--elastic", *FLOAT)),
}
"""Kind of server to its model folder and options; from "open" on they need no key."""

if __name__ == "__main__":
    main()
