"""Runs jobs on DistServe's released simulator; started with an interpreter that has simpy and pandas.

Reads one JSON object from stdin: `source`, a checkout of LLMServe/DistServe, and `jobs`, each with `args`
(its command line) and `rows` (start_time in s, prompt_len, output_len). Prints one JSON list: for each job
the shares of requests that met TTFT, TPOT and both, as the simulator reports them.
"""

import json
import sys
import tempfile
from pathlib import Path


def main() -> None:
    asked = json.load(sys.stdin)
    sys.path.insert(0, asked["source"])
    from simdistserve.benchmarks.simulate_dist import parse_args, run_experiment

    found = []
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "workload.json"
        for job in asked["jobs"]:
            path.write_text(json.dumps(job["rows"]))
            fixed = ["--arrival", "custom", "--workload", str(path), "--N", str(len(job["rows"]))]
            _, _, table = run_experiment(parse_args([*fixed, "--slo-scales", "[1.0]", *job["args"]]))
            shares = dict(zip(table["pd"][:3], table["attainment"][:3], strict=True))
            found.append([float(shares[name]) / 100 for name in ("prefill", "decode", "both")])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
