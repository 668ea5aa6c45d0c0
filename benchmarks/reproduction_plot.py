"""One picture of accuracy against ReLUs: every method as run here (solid) and as published (dashed, hollow).

Published curves are drawn beside runs of the papers' size alone: a small task has other accuracies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "deepreduce", "font.family": "DejaVu Sans", "font.size": 9}
_LOOKS = {
    "masks": ("#1d6b40", "P"),
    "ours": ("#2f8f57", "o"),
    "deepreduce": ("#2b5f9e", "s"),
    "snl": ("#c0612b", "^"),
    "senet": ("#7a4fa3", "v"),
    "relupruner": ("#b5305f", "D"),
    "channel-pruning": ("#77807b", "x"),
}
_NAMES = {
    "masks": "ours, masks",
    "ours": "ours, narrow",
    "deepreduce": "DeepReDuce",
    "snl": "SNL",
    "senet": "SENet",
    "relupruner": "ReLUPruner",
    "channel-pruning": "channel pruning",
}
_MEANS = {"deepreduce-masks": "masks", "deepreduce-narrow": "ours", "published": "deepreduce"}


def draw(content: dict[str, Any], stem: Path) -> list[Path]:
    """Draw the networks of a results file's first base network.

    Args:
        content: of the results file.
        stem: of the two files, PNG and SVG.

    Returns:
        The files written.
    """
    network, data = content["networks"][0], content["data"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        here = [m for m in content["measured"] if m["network"] == network["name"]]
        for method, (colour, marker) in _LOOKS.items():
            known = sorted(
                (row["relus"], row["accuracy"])
                for row in content["rows"]
                if (row["method"], row["data"], row["network"]) == (method, "cifar100", network["name"])
                and row["accuracy"] is not None
            )
            if known and content["comparable_with_the_papers"]:
                axes.plot(
                    *zip(*known, strict=True), ls="--", lw=1, marker=marker, mfc="white", ms=5, color=colour, alpha=0.8,
                    label=f"{_NAMES[method]}, published",
                )  # fmt: skip
            own = sorted(
                (m["relus"], m["accuracy"], m["accuracy"] - m["low"], m["high"] - m["accuracy"])
                for m in here
                if _MEANS.get(m["method"], m["method"]) == method
            )
            if own:
                relus, accuracy, down, up = zip(*own, strict=True)
                axes.errorbar(
                    relus, accuracy, yerr=[down, up], fmt=f"{marker}-", color=colour, lw=1.4, ms=5, capsize=2.5,
                    label=f"{_NAMES[method]}, here",
                )  # fmt: skip
        teacher = next((m for m in here if m["method"] == "teacher"), None)
        if teacher:
            axes.axhline(teacher["accuracy"], color="#222826", lw=0.9, ls=":", label="teacher, here")
        axes.set_xscale("log")
        axes.set_xlabel("ReLUs for one image (log scale)")
        splits = "/".join(sorted({m["split"] for m in here})) or "no"
        axes.set_ylabel(f"{splits} accuracy, % (bars: 95 % interval)")
        named = f"{network['name']}, width {network['width']:g}, {data['name']}, {network['classes']} classes"
        axes.set_title(named, fontsize=9)
        axes.grid(True, color="#e3e7e4", lw=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        written = []
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "deepreduce"})):
            written.append(stem.with_name(f"{stem.name}.{kind}"))
            figure.savefig(written[-1], format=kind, dpi=160, metadata=metadata)
    return written
