"""A sweep as a picture: what was measured, and what the predictor says between. Needs the `report` extra."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def draw_front(sweep: Mapping[str, Any], path: Path) -> None:
    """Draw what sweep.json says as SVG: scores over the cost."""
    figure = Figure(figsize=(6.5, 4))
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    front, rows = sweep["front"], sweep["rows"]
    limits = [point["limit"] for point in front]
    axes.fill_between(
        limits, [p["low"] for p in front], [p["high"] for p in front], alpha=0.2, label="90 % interval"
    )
    axes.plot(limits, [point["predicted"] for point in front], label="predicted")
    axes.plot([row["used"] for row in rows], [row["measured"] for row in rows], "o", label="measured")
    axes.set_xscale("log")
    axes.set_xlabel(f"{sweep['cost']}, {sweep['unit']}")
    axes.set_ylabel(sweep["score"])
    axes.set_title(f"{sweep['model']} for {sweep['target']}, {sweep['labels']} labels")
    axes.legend()
    figure.savefig(path, format="svg", bbox_inches="tight")
