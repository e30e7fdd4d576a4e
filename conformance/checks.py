"""One check a client: its command, and what counts as success. Each returns a line of words."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers import HERE, install
from served import Served

Check = Callable[[Served, Path], str]
KEY = "conformance"
GUIDELLM_REQUESTS = 8


class Failed(Exception):
    """The client was not content."""


def openai_python(server: Served, out: Path) -> str:
    """A script of what users of openai-python do; every line of it asserts."""
    peer = install("openai")
    log = out / "openai.log"
    script = str(HERE / "openai_script.py")
    if peer.run("python", script, server.base, server.name, KEY, cwd=out, log=log):
        raise Failed(f"see {log}: {log.read_text().strip().splitlines()[-1]}")
    return f"{log.read_text().count(' ok')} groups of assertions, openai {peer.version('openai')}"


def schemathesis(server: Served, out: Path) -> str:
    """Requests made from our openapi.json: none may be answered with a 5xx."""
    peer = install("schemathesis")
    log = out / "schemathesis.log"
    code = peer.run(
        *("schemathesis", "run", f"{server.base}/openapi.json", "--phases", "examples,fuzzing"),
        *("--checks", "not_a_server_error", "--max-examples", "50", "--request-timeout", "30"),
        *(
            "--header",
            f"Authorization: Bearer {KEY}",
            "--seed",
            "1",
            "--report-junit-path",
            "schemathesis.xml",
        ),
        cwd=out,
        log=log,
        SCHEMATHESIS_HOOKS=str(HERE / "no_deadlines.py"),
    )
    words = log.read_text()
    cases = re.search(r"(\d+) generated", words)
    if code or not cases:
        raise Failed(f"exit status {code}, see {log}")
    return f"{cases[1]} cases, no 5xx, schemathesis {peer.version('schemathesis')}"


def guidellm(server: Served, out: Path) -> str:
    """A load at a constant rate: all requests successful."""
    peer = install("guidellm")
    log = out / "guidellm.log"
    code = peer.run(
        *("guidellm", "run", "--backend", f"kind=openai_http,target={server.base}"),
        *(
            "--profile",
            "kind=constant,rate=4",
            "--constraint",
            f"kind=max_requests,count={GUIDELLM_REQUESTS}",
        ),
        *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=8"),
        *("--tokenizer", f"kind=huggingface_auto,model={server.folder}"),
        cwd=out,
        log=log,
        HF_HUB_OFFLINE="1",
    )
    if code:
        raise Failed(f"exit status {code}, see {log}")
    [benchmark] = json.loads((out / "benchmarks.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    if (totals["successful"], totals["errored"]) != (GUIDELLM_REQUESTS, 0):
        raise Failed(f"{totals}, see {log}")
    return f"{totals['successful']} of {GUIDELLM_REQUESTS} successful, guidellm {peer.version('guidellm')}"


def lm_eval(server: Served, out: Path) -> str:
    """Our server and transformers on the same weights give the same scores on both tasks."""
    peer = install("lm-eval")
    remote = f"model={server.name},base_url={server.base}/v1/completions,tokenizer={server.folder}"
    remote += ",num_concurrent=2,max_retries=1,tokenized_requests=True"
    ours = _evaluate(peer, out / "ours", "local-completions", remote)
    theirs = _evaluate(peer, out / "theirs", "hf", f"pretrained={server.folder},dtype=float32,device=cpu")
    if ours != theirs:
        raise Failed(f"scores differ: ours {ours}, transformers {theirs}")
    scores = ", ".join(f"{name} {value:.3f}" for name, value in ours.items())
    return f"equal: {scores}, lm-eval {peer.version('lm-eval')}"


def _evaluate(peer: Any, out: Path, model: str, args: str) -> dict[str, float]:
    """Metric to score of both tasks."""
    out.mkdir(exist_ok=True)
    log = out / "lm-eval.log"
    code = peer.run(
        *("lm-eval", "run", "--model", model, "--model_args", args, "--tasks", "mini_mc,mini_gen"),
        *("--include_path", ".", "--output_path", str(out), "--log_samples"),
        cwd=HERE / "tasks",
        log=log,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        OPENAI_API_KEY=KEY,
    )
    found = sorted(out.rglob("results_*.json"))
    if code or not found:
        raise Failed(f"exit status {code}, see {log}")
    results = json.loads(found[-1].read_text())["results"]
    return {
        f"{task} {metric.split(',')[0]}": value
        for task in ("mini_mc", "mini_gen")
        for metric, value in sorted(results[task].items())
        if isinstance(value, float) and "stderr" not in metric
    }
