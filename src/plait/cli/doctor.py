"""`plait doctor`: what this machine has, and what it lacks for `plait serve`."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from plait.runtime.doctor import Finding, State, examine

COLOURS = {State.FINE: "green", State.NOTE: "yellow", State.MISSING: "red"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False) -> None:
    """Look at this machine: packages, kernels, memory, network, models. Exit code 1: serving cannot work."""
    console, findings = Console(highlight=False, soft_wrap=True), []
    for finding in examine():
        findings.append(finding)
        if not as_json:
            _show(console, finding)
    able = not any(finding.state is State.MISSING for finding in findings)
    if as_json:
        checks = [asdict(finding) for finding in findings]
        sys.stdout.write(json.dumps({"able_to_serve": able, "checks": checks}, indent=2) + "\n")
    else:
        console.print("plait serve can run here" if able else "[red]plait serve cannot run here[/red]")
    if not able:
        raise typer.Exit(1)


def _show(console: Console, finding: Finding) -> None:
    colour = COLOURS[finding.state]
    console.print(f"[{colour}]{finding.state:8}[/{colour}]{finding.name:18}{escape(finding.value)}")
    if finding.hint:
        console.print(f"{'':26}hint: {escape(finding.hint)}")
