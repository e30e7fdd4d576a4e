"""What `plait serve` takes from the planner: a file of `plait plan`, or with `--auto` a plan of its own."""

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from plait.cli.plan import planning
from plait.model.hub import resolve
from plait.planner.search import Policy
from plait.spec.cluster import Placement
from plait.spec.errors import UserError
from plait.workload.placement import read_placement
from plait.workload.trace import read_trace

NS = 1e9


@dataclass(frozen=True, slots=True)
class Follow:
    """Which plan a server follows; false: none."""

    plan: Path | None
    """What `plait plan` wrote."""
    auto: Path | None
    """A trace to plan for."""
    on: Path | None
    """The cluster to plan on."""
    cost: str
    """Step times to plan with."""

    def __bool__(self) -> bool:
        return self.plan is not None or self.auto is not None

    def placement(self, model: str, slo: str | None) -> tuple[Placement, str | None]:
        """The placement, and the objectives: those that are given, else the plan's.

        Raises:
            UserError: something is missing or cannot be read, or no placement holds the objectives.
        """
        if self.auto is not None:
            return automatic(model, self.auto, self.on, slo, self.cost), slo
        assert self.plan is not None, "there is something to follow"
        found = read_placement(self.plan)
        about = json.loads(self.plan.read_text()).get("about") or {} if self.plan.suffix == ".json" else {}
        return found, slo or about.get("slo")


def automatic(model: str, trace: Path, cluster: Path | None, slo: str | None, cost: str) -> Placement:
    """The placement, of any kind, that serves requests like a trace's on the fewest devices; says why on
    stderr.

    Args:
        trace: requests at the rate that is to be carried; .jsonl is Mooncake's form, else Azure's.

    Raises:
        UserError: something is missing or cannot be read, or no placement holds the objectives.
    """
    if cluster is None or slo is None:
        raise UserError(
            "--auto plans first: name the cluster with --on and the objectives with --slo", "auto"
        )
    form = "mooncake" if trace.suffix == ".jsonl" else "azure"
    rows = read_trace(trace, form)
    span_ns = rows[-1].arrival_ns - rows[0].arrival_ns
    if not span_ns:
        raise UserError(f"all requests of {trace} come at once: its rate cannot be told", "auto")
    with TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        out = Path(scratch) / "placement.json"
        planning(
            model=str(resolve(model)),
            cluster=cluster,
            trace=trace,
            slo=slo,
            rate=(len(rows) - 1) * NS / span_ns,
            form=form,
            mode=Policy.AUTO,
            cost=cost,
            out=out,
        ).run()
        return read_placement(out)
