"""`write_page`: a run as one HTML page, of what its stages left behind; it fetches nothing from elsewhere."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from plait import __version__
from plait.recipe import pictures
from plait.recipe.provenance import Provenance
from plait.recipe.serving import ANSWERS, JOURNAL
from plait.recipe.stage import NAMES
from plait.runtime.checkpoint import METRICS
from plait.spec.errors import UserError
from plait.spec.event import WorkerUp
from plait.workload.board.alignment import alignment_of, ranks_of, read_metrics
from plait.workload.gantt import Gantt, Seen
from plait.workload.journal import Entry, read_journal
from plait.workload.result import Recorder, Spread, Summary
from plait.workload.timeline import timeline

PAGE = "report.html"
NS, MB = 1e9, 1e6
METHODS = {"gae": "PPO", "grpo": "GRPO", "rloo": "RLOO"}
"""Names of estimators' methods."""
Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Heads of columns, and rows."""


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says of one stage."""

    name: str
    seconds: float
    said: Sequence[str]
    """Sentences."""
    tables: Sequence[Table] = ()
    drawn: Sequence[tuple[str, str]] = ()
    """Titles and SVG."""
    answers: Sequence[Mapping[str, str]] = ()
    """Questions that were asked, and what the model said."""


def write_page(out: Path, name: str) -> Path:
    """Write OUT/report.html of the stages that are done there.

    Args:
        out: folder of a run of `plait run`.
        name: of the recipe.

    Raises:
        UserError: no stage is done, or one left what cannot be read.
    """
    told = {stage: Provenance.load(out / stage) for stage in NAMES}
    done = {stage: each for stage, each in told.items() if each is not None and each.result_sha256}
    if not done:
        raise UserError(f"{out} holds no stage that is done: run the recipe first", "out")
    sections = [SECTIONS[stage](out / stage, each) for stage, each in done.items()]
    template = files("plait.recipe").joinpath("page.html.j2").read_text()
    page = jinja2.Environment(autoescape=True).from_string(template)
    path = out / PAGE
    path.write_text(
        page.render(
            name=name,
            sections=sections,
            seconds=sum(section.seconds for section in sections),
            machine=f"Plait {__version__}, {platform.machine()}, Python {platform.python_version()}",
        )
    )
    return path


def _align(folder: Path, told: Provenance) -> Section:
    trace = folder / "timeline.json"
    ranks = ranks_of(trace.read_bytes()) if trace.is_file() else ()
    with (folder / METRICS).open("rb") as lines:
        run = alignment_of(read_metrics(lines, METRICS), ranks)
    scores, kl = run.curves["score"], run.curves["kl"]
    estimator = told.recipe.get("experience", {}).get("estimator", "gae")
    said = [
        f"{len(run.iterations)} iterations of {METHODS.get(estimator, estimator)} on "
        f"{told.recipe['models']['actor']}: mean reward {scores[0]:.3f} in the first, {scores[-1]:.3f} in "
        f"the last, {kl[-1]:.2g} nats from the reference."
    ]
    drawn = [("Reward, divergence, seconds", pictures.svg(pictures.curves(run)))]
    newest = sorted(folder.glob("journal-*.jsonl"))[-1:]
    for journal in newest:
        gantt = _gantt(read_journal(journal).entries)
        title = "Which instance drew samples when, and which scored them"
        drawn += [(title, pictures.svg(pictures.drawn_and_scored(gantt)))] if gantt.bars else []
    if run.ranks:
        title = "The last training step of all models: their pipelines on the same ranks"
        drawn.append((title, pictures.svg(pictures.last_step(run))))
    return Section("align", told.seconds, said, drawn=drawn)


def _gantt(entries: Sequence[Entry]) -> Gantt:
    gantt = Gantt()
    seen = Seen(gantt)
    for entry in entries:
        seen.see(entry.now_ns, entry.event, entry.commands)
    seen.close()
    return gantt


def _compress(folder: Path, told: Provenance) -> Section:
    report = json.loads((folder / "report.json").read_text())
    test = report["test"]
    perplexity = test["perplexity"]
    said = [
        f"{report['bytes'] / MB:.1f} MB of weights, chosen from {report['labels']} measured policies: on "
        f"text that no choice was made with {test['kl']:.3f} nats a token from the model before, perplexity "
        f"{perplexity['compressed']:.2f} where that has {perplexity['reference']:.2f}."
    ]
    if "objective" in told.metrics:
        said.append(told.metrics["objective"])
    if "steps" in report:
        said.append(
            f"Times of decode steps follow from {report['steps']['measured']} that were measured here; the "
            f"worst of these is off by {report['steps']['worst']:.0%}."
        )
    rows = [
        (
            pictures.UNITS[name][1],
            *(f"{ns / pictures.UNITS[name][0]:.2f}" for ns in (limit, report["costs"][name])),
        )
        for name, limit in report["limits"].items()
    ]
    units = report["policy"]["units"]
    drawn = [("What was measured, predicted and chosen", pictures.svg(pictures.front(report)))]
    if any("weight_bits" in each for each in units.values()):
        drawn.append(("Bits of each layer", pictures.svg(pictures.policy(units))))
    return Section("compress", told.seconds, said, [(("", "budget", "used"), rows)], drawn)


def _plan(folder: Path, told: Provenance) -> Section:
    found = told.metrics
    heads = ("placement", "kind", "requests/s a device", "95 % interval", "devices for the rate")
    rows = [
        (
            each["candidate"],
            each["kind"],
            f"{each['per_device']:.2f}",
            f"{each['interval'][0]:.2f} to {each['interval'][1]:.2f}",
            str(each["devices"]) if each["copies"] else "-",
        )
        for each in found["table"]
    ]
    drawn = [("What placements bear", pictures.svg(pictures.candidates(found["table"])))]
    said = [found["why"], f"{sum(found['fates'].values())} candidates: " + _counted(found["fates"]) + "."]
    return Section("plan", told.seconds, said, [(heads, rows)], drawn)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _serve(folder: Path, told: Provenance) -> Section:
    history, recorder = read_journal(folder / JOURNAL), Recorder()
    for entry in history.entries:
        recorder.see(entry.now_ns, entry.event, entry.commands)
    drill = told.metrics.get("drill")
    said = [_drilled(drill, told.metrics)] if drill else []
    away_s, held = _away(drill, history.entries), () if drill is None else drill["requests"]
    events = timeline(history.entries).events
    roles = {each["id"]: each["role"] for each in history.config["placement"]["instances"]}
    drawn = [
        ("Each request", pictures.requests(recorder.records, held, away_s)),
        ("What each instance did", pictures.instances(events, roles, away_s)),
        ("Latency", pictures.latencies(recorder.records)),
        ("Queue and memory", pictures.queue_and_memory(events)),
    ]
    spreads = [
        (name, *(f"{value:.1f}" for value in (spread.mean, spread.p50, spread.p90, spread.p99)))
        for name, spread in _summary(told.metrics).latency_rows()
        if spread is not None
    ]
    tables: list[Table] = [
        (("ms", "mean", "p50", "p90", "p99"), spreads),
        (("", ""), _summary(told.metrics).total_rows()),
    ]
    answers = json.loads((folder / ANSWERS).read_text()) if (folder / ANSWERS).is_file() else ()
    shown = [(title, pictures.svg(figure)) for title, figure in drawn]
    return Section("serve", told.seconds, said, tables, shown, answers)


def _summary(metrics: Mapping[str, Any]) -> Summary:
    """What the load's own client measured."""
    named = {name: metrics[name] for name in Summary.__dataclass_fields__}
    return Summary(**{name: Spread(**v) if name.endswith("_ms") and v else v for name, v in named.items()})


def _drilled(drill: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    away_s, held = drill["away_s"], len(drill["requests"])
    back = "was not back before the end" if away_s is None else f"was back after {away_s:.1f} s"
    return (
        f"When {drill['after']} requests had ended, instance {drill['killed']} ({drill['role']}) was killed "
        f"by signal 9, and {back}. Requests that had keys and values there: {held}; of these got their whole "
        f"answer, computed anew: {drill['recovered']}. In all, {metrics['completed']} of "
        f"{metrics['requests']} did."
    )


def _away(drill: Mapping[str, Any] | None, entries: Sequence[Entry]) -> tuple[float, float] | None:
    """Seconds on the journal's clock between which the killed worker was gone."""
    if drill is None:
        return None
    lost_ns = drill["lost_ns"]
    back = [
        entry.now_ns
        for entry in entries
        if isinstance(entry.event, WorkerUp)
        and entry.event.instance == drill["killed"]
        and entry.now_ns > lost_ns
    ]
    return lost_ns / NS, (back or [entries[-1].now_ns])[0] / NS


SECTIONS: Mapping[str, Callable[[Path, Provenance], Section]] = {
    "align": _align,
    "compress": _compress,
    "plan": _plan,
    "serve": _serve,
}
