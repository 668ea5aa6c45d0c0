"""Figures for a paper, as PNG and SVG: the front in ReLUs and in seconds, the stage map, the criticality of the stages.

The same front gives the same bytes: no date, no random ids, no state outside this module.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepreduce._files import write_bytes
from deepreduce.errors import missing_extra
from deepreduce.report import _words as words
from deepreduce.report._seconds import RELUS, fronts_of, links_of, title, value
from deepreduce.report._stages import Scale, map_rows
from deepreduce.report.front import Json, candidates, check_front, shared_split

GREEN, INK, FAINT, BLUE = "#2f8f57", "#222826", "#9aa39e", "#2b5f9e"

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched and set in the paper's own font
    "svg.hashsalt": "deepreduce",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def write_figures(front: Json, folder: Path) -> list[Path]:
    """Write the figures `front`, `seconds`, `stages` and `criticality`, each as PNG (200 dots per inch) and SVG.

    Args:
        front: the parsed `front.json`.
        folder: where the files go; made where missing, files of the same name are replaced.

    Returns:
        The files written. `criticality` is left out where no stage has one, `seconds` where no private cost is known.

    Raises:
        RunError: `front` is not a front of a known version, or the folder cannot be written to.
        MissingExtraError: matplotlib is not installed.
    """
    check_front(front)
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise missing_extra("matplotlib", "report", purpose="drawing figures") from error
    drawings: list[tuple[str, Callable[[Json], Any]]] = [("front", _draw_front), ("stages", _draw_stages)]
    if links_of(front):
        drawings.append(("seconds", _draw_seconds))
    if _measured_stages(front):
        drawings.append(("criticality", _draw_criticality))
    written = []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn with boxes in the PNG and is right in the SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for name, draw in drawings:
            figure = draw(front)
            FigureCanvasAgg(figure)
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": "deepreduce"})):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
                path = Path(folder) / f"{name}.{kind}"
                write_bytes(path, buffer.getvalue())
                written.append(path)
    return written


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure, (axes,) = _panels(width, height, 1)
    return figure, axes


def _panels(width: float, height: float, count: int) -> tuple[Any, list[Any]]:
    """Return a figure with panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axes in panels:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def _draw_front(front: Json) -> Any:
    figure, axes = _figure(5.6, 3.8)
    _draw_against(axes, front, RELUS)
    axes.set_ylabel(f"{shared_split(front)} accuracy, % (bars: 95 % interval)")
    return figure


def _draw_seconds(front: Json) -> Any:
    links = list(links_of(front))
    figure, panels = _panels(4.4 * len(links) + 0.6, 3.8, len(links))
    for axes, link in zip(panels, links, strict=True):
        _draw_against(axes, front, link)
    panels[0].set_ylabel(f"{shared_split(front)} accuracy, % (bars: 95 % interval)")
    return figure


def _draw_against(axes: Any, front: Json, name: str) -> None:
    """Draw accuracy against ReLUs or the seconds over a link."""
    split = shared_split(front)
    teacher, on_front = front["teacher"], set(fronts_of(front)[name])
    reduced = [entry for entry in candidates(front) if entry["id"] in on_front]
    reduced.sort(key=lambda entry: value(entry, name) or 0)
    rest = [entry for entry in candidates(front) if entry["id"] not in on_front]
    if faint := _points(rest, split, name):
        axes.plot(faint[0], faint[1], "o", color=FAINT, alpha=0.6, markersize=4, label="off the front")
    for entries, line, colour, label in (
        (reduced, "o-", GREEN, "front"),
        ([teacher], "D", BLUE, words.shorten(f"teacher, {words.count(teacher['relus'])} ReLUs", 40)),
    ):
        if found := _points(entries, split, name):
            costs, accuracy, down, up = found
            axes.errorbar(
                costs, accuracy, yerr=[down, up], fmt=line, color=colour, label=label, markersize=5, capsize=2.5, lw=1.3
            )
    if teacher[split]:
        axes.axhline(100 * teacher[split]["accuracy"], color=BLUE, linestyle=(0, (4, 3)), linewidth=0.9, zorder=0)
    axes.set_xscale("log")
    shown = [value(entry, name) for entry in (*candidates(front), teacher) if entry[split]]
    _round_numbers(axes.xaxis, [cost for cost in shown if cost], _short if name == RELUS else _time)
    axes.set_xlabel(title(front, name))
    axes.grid(True, color="#e3e7e4", linewidth=0.7)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)
    else:
        axes.text(0.5, 0.5, f"no network has a {split} accuracy", ha="center", transform=axes.transAxes)


def _points(
    entries: list[Json], split: str, name: str
) -> tuple[list[float], list[float], list[float], list[float]] | None:
    """ReLUs or seconds, accuracy and both error bars in percent; what costs nothing has no place on a log axis."""
    chosen = [entry for entry in entries if entry[split] and value(entry, name)]
    if not chosen:
        return None
    measured = [entry[split] for entry in chosen]
    return (
        [value(entry, name) or 0.0 for entry in chosen],
        [100 * each["accuracy"] for each in measured],
        [max(0.0, 100 * (each["accuracy"] - each["low"])) for each in measured],
        [max(0.0, 100 * (each["high"] - each["accuracy"])) for each in measured],
    )


def _round_numbers(axis: Any, costs: list[float], written: Callable[[float], str]) -> None:
    """Put ticks at round numbers of a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = min(costs, default=1e4) / 1.25, max(costs, default=1e6) * 1.25
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    ticks = [step * 10.0**power for power in range(-6, 13) for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axis.axes.set_xlim(low, high)


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _time(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 0.0995 else f"{value:.3g} s"


def _draw_stages(front: Json) -> Any:
    from matplotlib.patches import Patch, Rectangle

    rows = map_rows(front)
    scale = Scale.of(stages for _, stages in rows)
    names = list(dict.fromkeys(stage.name for _, stages in rows for stage in stages))
    widest = {name: max(len(s.bars) for _, stages in rows for s in stages if s.name == name) for name in names}
    starts, total = {}, 0.0
    for name in names:
        starts[name] = total
        total += max(widest[name], 2) + 1.5
    total += 3.5  # room for the count of ReLUs right of the last stage
    figure, axes = _figure(min(14.0, max(4.8, 3.4 + 0.17 * total)), 0.9 + 0.36 * len(rows))
    for line, (entry, stages) in enumerate(rows):
        floor = -float(line)
        for stage in stages:
            for place, bar in enumerate(stage.bars):
                corner = (starts[stage.name] + place, floor)
                colour = GREEN if bar.kept else "white"
                edge = GREEN if bar.kept else FAINT
                height = 0.72 * scale.height(bar.relus)
                axes.add_patch(
                    Rectangle(corner, 0.78, height, facecolor=colour, edgecolor=edge, linewidth=0.7, gid=f"bar-{line}")
                )
        label = "full network" if line == 0 else words.shorten(entry["label"], 40)
        axes.text(-1.0, floor + 0.2, label, ha="right", va="baseline")
        axes.text(total, floor + 0.2, words.count(entry["relus"]), ha="right", va="baseline")
    for name in names:
        middle = starts[name] + max(widest[name], 2) / 2
        axes.text(middle, 1.0, words.shorten(name, 12), ha="center", fontweight="bold")
    axes.text(total, 1.0, "ReLUs", ha="right", fontweight="bold")
    axes.set_xlim(-1.0, total)
    axes.set_ylim(-len(rows) + 0.6, 1.4)
    axes.axis("off")
    handles = [
        Patch(facecolor=GREEN, edgecolor=GREEN, label="ReLUs kept"),
        Patch(facecolor="white", edgecolor=FAINT, label="ReLUs removed"),
    ]
    axes.legend(
        handles=handles,
        frameon=False,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        title=_STEP,
        title_fontsize=8,
    )
    return figure


_STEP = "one bar per ReLU layer; its height grows by one step for each factor of two in ReLUs"


def _measured_stages(front: Json) -> list[Json]:
    return [row for row in front["criticality"] if words.number(row["criticality"]) is not None]


def _draw_criticality(front: Json) -> Any:
    rows = _measured_stages(front)
    figure, axes = _figure(4.6, 1.0 + 0.34 * len(rows))
    places = list(range(len(rows)))
    axes.barh(places, [row["criticality"] for row in rows], color=GREEN, height=0.62)
    for place, row in zip(places, rows, strict=True):
        text = f" {row['criticality']:.4f}   ({words.percent(row['accuracy'], 1)} %)"
        axes.text(max(0.0, row["criticality"]), place, text, va="center", fontsize=8)
    axes.set_yticks(places, [words.shorten(row["stage"], 24) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlim(left=min(0.0, *(row["criticality"] for row in rows)) if len(rows) > 1 else None)
    power = "" if front["exponent"] is None else f", w = {front['exponent']:g}"
    axes.set_xlabel(
        f"criticality C_k{power}\n(in brackets: accuracy with ReLUs in this stage alone, distilled)", fontsize=8
    )
    return figure
