"""One picture of accuracy against ReLUs: every method as run here (solid) and as published (dashed, hollow).

Each base network has a panel, and one more for every link over which its networks were run privately: accuracy against
seconds online, from the image to the label. A line joins the networks that the held-out images put on the method's
front; its other networks are the faint markers. Published curves are drawn beside runs of the papers' size alone: a
small task has other accuracies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from reproduction_private import LINKS

from deepreduce.reduction import pareto_front

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "deepreduce", "font.family": "DejaVu Sans", "font.size": 9}
_LOOKS = {
    "deepreduce-masks": ("ours, masks", "#1d6b40", "P"),
    "deepreduce-narrow": ("ours, narrow", "#2f8f57", "o"),
    "deepreduce": ("DeepReDuce", "#2b5f9e", "s"),
    "snl": ("SNL", "#c0612b", "^"),
    "senet": ("SENet", "#7a4fa3", "v"),
    "relupruner": ("ReLUPruner", "#b5305f", "D"),
    "channel-pruning": ("channel pruning", "#77807b", "x"),
}
_SAME = {"published": "deepreduce"}
"""The method `published` trains DeepReDuce's networks."""


def draw(content: dict[str, Any], stem: Path) -> list[Path]:
    """Draw the networks of a results file.

    Args:
        content: of the results file.
        stem: of the two files, PNG and SVG.

    Returns:
        The files written.
    """
    networks = content["networks"]
    with matplotlib.rc_context(_STYLE):
        wanted: list[tuple[dict[str, Any], str | None]] = []
        for network in networks:
            own = [m for m in content["measured"] if m["network"] == network["name"]]
            links = [link for link in LINKS if any(link in m["private"] for m in own)]
            wanted += [(network, link) for link in (None, *links)]
        # At most two side by side: on a page that is as wide as a text, more are too small to be read.
        columns = min(2, len(wanted))
        rows = -(-len(wanted) // columns)
        figure = Figure(figsize=(5.0 * columns, 4.2 * rows + 0.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        drawn, spare = panels[: len(wanted)], panels[len(wanted) :]
        for axes, (network, link) in zip(drawn, wanted, strict=True):
            _panel(axes, network, link, content)
        labelled: dict[str, Any] = {}
        for axes in drawn:
            handles, labels = axes.get_legend_handles_labels()
            labelled |= dict(zip(labels, handles, strict=True))
        for axes in spare:
            axes.set_axis_off()
        holder, place, across = (spare[0], "center", 1) if spare else (figure, "outside lower center", 2 * columns)
        holder.legend(list(labelled.values()), list(labelled), frameon=False, loc=place, ncols=across)
        written = []
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "deepreduce"})):
            written.append(stem.with_name(f"{stem.name}.{kind}"))
            figure.savefig(written[-1], format=kind, dpi=160, metadata=metadata)
    return written


def _panel(axes: Axes, network: dict[str, Any], link: str | None, content: dict[str, Any]) -> None:
    """Draw accuracy against ReLUs, or against the seconds that private inference takes over a link."""
    here = [measured for measured in content["measured"] if measured["network"] == network["name"]]
    shown = [measured for measured in here if link is None or link in measured["private"]]

    def across(measured: dict[str, Any]) -> float:
        return float(measured["relus"] if link is None else measured["private"][link]["online_seconds"])

    for method, (name, colour, marker) in _LOOKS.items():
        known = sorted(
            (row["relus"], row["accuracy"])
            for row in content["rows"]
            if (row["method"], row["data"], row["network"]) == (method, "cifar100", network["name"])
            and row["accuracy"] is not None
        )
        if known and link is None and content["comparable_with_the_papers"]:
            axes.plot(
                *zip(*known, strict=True), ls="--", lw=1, marker=marker, mfc="white", ms=5, color=colour, alpha=0.8,
                label=f"{name}, published",
            )  # fmt: skip
        own = [measured for measured in shown if _SAME.get(measured["method"], measured["method"]) == method]
        front = pareto_front(own, cost=across, accuracy=lambda m: m["validation"])
        others = [measured for measured in own if measured not in front]
        if others:
            points = [(across(measured), measured["accuracy"]) for measured in others]
            axes.plot(*zip(*points, strict=True), ls="", marker=marker, ms=4, color=colour, alpha=0.3)
        if front:
            line = sorted(
                (across(m), m["accuracy"], m["accuracy"] - m["low"], m["high"] - m["accuracy"]) for m in front
            )
            place, accuracy, down, up = zip(*line, strict=True)
            axes.errorbar(
                place, accuracy, yerr=[down, up], fmt=f"{marker}-", color=colour, lw=1.4, ms=5, capsize=2.5,
                label=f"{name}, here",
            )  # fmt: skip
    teacher = next((measured for measured in here if measured["method"] == "teacher"), None)
    if teacher:
        axes.axhline(teacher["accuracy"], color="#222826", lw=0.9, ls=":", label="teacher, here")
        if link is not None and link in teacher["private"]:
            axes.plot([across(teacher)], [teacher["accuracy"]], marker="*", ms=8, color="#222826", ls="")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    form = "{:,.0f}" if link is None else "{:g}"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form.format(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    what = "ReLUs for one image" if link is None else f"seconds online, {LINKS[link]}"
    axes.set_xlabel(f"{what} (log scale)")
    splits = "/".join(sorted({measured["split"] for measured in here})) or "no"
    axes.set_ylabel(f"{splits} accuracy, % (bars: 95 % interval)")
    data = content["data"]["name"]
    axes.set_title(f"{network['name']}, width {network['width']:g}, {data}, {network['classes']} classes", fontsize=9)
    axes.grid(True, color="#e3e7e4", lw=0.7)
    axes.set_axisbelow(True)
