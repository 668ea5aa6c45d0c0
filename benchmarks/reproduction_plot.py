"""One picture of accuracy against ReLUs: every method as run here (solid) and as published (dashed, hollow).

Each base network has a panel. A line joins the networks that the held-out images put on the method's front; its other
networks are the faint markers. Published curves are drawn beside runs of the papers' size alone: a small task has other
accuracies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
        figure = Figure(figsize=(2.2 + 5.0 * len(networks), 4.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(networks), squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            _panel(axes, network, content)
        labelled: dict[str, Any] = {}
        for axes in panels:
            handles, labels = axes.get_legend_handles_labels()
            labelled |= dict(zip(labels, handles, strict=True))
        panels[-1].legend(
            list(labelled.values()),
            list(labelled),
            frameon=False,
            fontsize=7,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
        )  # fmt: skip
        written = []
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "deepreduce"})):
            written.append(stem.with_name(f"{stem.name}.{kind}"))
            figure.savefig(written[-1], format=kind, dpi=160, metadata=metadata)
    return written


def _panel(axes: Axes, network: dict[str, Any], content: dict[str, Any]) -> None:
    here = [measured for measured in content["measured"] if measured["network"] == network["name"]]
    for method, (name, colour, marker) in _LOOKS.items():
        known = sorted(
            (row["relus"], row["accuracy"])
            for row in content["rows"]
            if (row["method"], row["data"], row["network"]) == (method, "cifar100", network["name"])
            and row["accuracy"] is not None
        )
        if known and content["comparable_with_the_papers"]:
            axes.plot(
                *zip(*known, strict=True), ls="--", lw=1, marker=marker, mfc="white", ms=5, color=colour, alpha=0.8,
                label=f"{name}, published",
            )  # fmt: skip
        own = [measured for measured in here if _SAME.get(measured["method"], measured["method"]) == method]
        front = pareto_front(own, relus=lambda m: m["relus"], accuracy=lambda m: m["validation"])
        others = [measured for measured in own if measured not in front]
        if others:
            points = [(measured["relus"], measured["accuracy"]) for measured in others]
            axes.plot(*zip(*points, strict=True), ls="", marker=marker, ms=4, color=colour, alpha=0.3)
        if front:
            line = sorted(
                (m["relus"], m["accuracy"], m["accuracy"] - m["low"], m["high"] - m["accuracy"]) for m in front
            )
            relus, accuracy, down, up = zip(*line, strict=True)
            axes.errorbar(
                relus, accuracy, yerr=[down, up], fmt=f"{marker}-", color=colour, lw=1.4, ms=5, capsize=2.5,
                label=f"{name}, here",
            )  # fmt: skip
    teacher = next((measured for measured in here if measured["method"] == "teacher"), None)
    if teacher:
        axes.axhline(teacher["accuracy"], color="#222826", lw=0.9, ls=":", label="teacher, here")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda relus, _: f"{relus:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ReLUs for one image (log scale)")
    splits = "/".join(sorted({measured["split"] for measured in here})) or "no"
    axes.set_ylabel(f"{splits} accuracy, % (bars: 95 % interval)")
    data = content["data"]["name"]
    axes.set_title(f"{network['name']}, width {network['width']:g}, {data}, {network['classes']} classes", fontsize=9)
    axes.grid(True, color="#e3e7e4", lw=0.7)
    axes.set_axisbelow(True)
