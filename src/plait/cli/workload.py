"""The options that describe a workload, the same for `simulate` and `bench serve`."""

from pathlib import Path
from typing import Annotated

import typer

from plait.workload.profile import PROCESSES
from plait.workload.trace import FORMATS

Process = Annotated[str, typer.Option("--profile", help=f"When requests come: {', '.join(PROCESSES)}.")]
Rate = Annotated[float | None, typer.Option(help="Requests a second. A trace keeps its own rate without it.")]
Count = Annotated[int, typer.Option("--num-prompts", help="Requests; at most this many of a trace.")]
PromptLength = Annotated[
    str, typer.Option("--input-len", help="Prompt tokens: 128, 64-256 or lognormal:MEAN:CV.")
]
OutputLength = Annotated[str, typer.Option("--output-len", help="Output tokens, in the same forms.")]
Cv = Annotated[float, typer.Option(help="Coefficient of variation of the gaps of `gamma`.")]
Burst = Annotated[int, typer.Option(help="Requests that come together in `burst`.")]
Trace = Annotated[
    Path | None, typer.Option(help="Take lengths (and, with --profile trace, arrivals) from it.")
]
Format = Annotated[str, typer.Option("--format", help=f"Format of the trace: {', '.join(FORMATS)}.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same workload.")]
Objectives = Annotated[str | None, typer.Option("--slo", help="Objectives, such as ttft=200ms,tpot=50ms.")]
Json = Annotated[str | None, typer.Option("--json", help="Write the result to this file; - for stdout.")]
