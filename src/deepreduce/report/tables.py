"""Tables for the terminal; they fit into 80 columns and open up on wider screens.

Names from files enter as plain text, never as rich markup.
"""

from __future__ import annotations

from typing import Any

from rich import box
from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from deepreduce.report import _seconds as seconds
from deepreduce.report import _words as words
from deepreduce.report.front import (
    Json,
    change,
    check_front,
    critical_ends,
    headline,
    shared_split,
)

_GOOD, _BAD, _DIM = "green", "red", "dim"


def _table(title: str, caption: list[str]) -> Table:
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        caption=Text("\n".join(line for line in caption if line), style=_DIM) if any(caption) else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )


def _plain(value: object, style: str = "") -> Text:
    return Text(words.clean(value), style=style)


def _accuracy(measured: Json | None, *, stacked: bool = False) -> Text:
    """One accuracy in percent with its interval and, of several seeds, their spread; `stacked` on a line each."""
    if measured is None:
        return Text(words.UNKNOWN, style=_DIM)
    cell = Text(words.percent(measured["accuracy"]), style="bold")
    # Without a space inside, so that a narrow column breaks between accuracy and interval.
    parts = [f"{words.percent(measured['low'], 1)}-{words.percent(measured['high'], 1)}", words.seeds(measured)]
    for part in filter(None, parts):
        cell.append("\n" if stacked else " ").append(part, style="not bold dim")
    return cell


def _change(teacher: Json, entry: Json, split: str) -> Text:
    found = change(teacher[split], entry[split])
    if found is None:
        return Text(words.UNKNOWN, style=_DIM)
    step, low, high = found
    return Text(words.points(step), style=_BAD if high < 0 else _GOOD if low > 0 else "")


def front_table(front: Json) -> Table:
    """Return the Pareto front as a table: the teacher, then the reduced networks, most ReLUs first.

    Args:
        front: the parsed `front.json`.

    Returns:
        ReLUs, reduction factor against the teacher, validation and test accuracy in percent with 95 % intervals (and
        mean ± standard deviation where several seeds ran), the change against the teacher in points (on the test images
        if they were read for all networks shown, else on the validation images), and the estimated seconds of private
        inference: online over each link with our engine, in runs without them DELPHI's. Below stand the candidates that
        were skipped or failed, and why.

    Raises:
        RunError: `front` is not a front of a known version, or a key is missing.
    """
    check_front(front)
    teacher, split = front["teacher"], shared_split(front)
    reduced = seconds.on_a_front(front)
    table = _table(
        f"Pareto front: {words.clean(front['network'].get('name'))} on {words.clean(front['data'].get('name'))}",
        [
            _summary(front),
            _method(front),
            f"Accuracy in % and its 95 % interval. Change: points against the teacher, {split} images.",
            seconds.note(front),
            _quick(front, reduced),
            *_left_out(front["candidates"]),
        ],
    )
    table.add_column("Network", min_width=14, overflow="fold")
    for name in ("ReLUs", "Fewer"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("Validation", "Test"):
        table.add_column(name, justify="right", min_width=10)
    times = seconds.across(front)[1:]
    for name in ("Change", *map(seconds.heading, times)):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in (teacher, *reduced):
        own = entry is teacher
        mark = "*" if not own and seconds.by_seconds_alone(front, entry) else ""
        table.add_row(
            _plain(entry["label"] + mark, "bold" if own else ""),
            words.count(entry["relus"]),
            words.UNKNOWN if own else words.factor(teacher["relus"], entry["relus"]),
            _accuracy(entry["validation"], stacked=True),
            _accuracy(entry["test"], stacked=True),
            Text(words.UNKNOWN, style=_DIM) if own else _change(teacher, entry, split),
            *(words.duration(seconds.value(entry, name)) for name in times),
            end_section=own,
        )
    return table


def _quick(front: Json, reduced: list[Json]) -> str:
    """Explain the mark of networks that are there for their seconds."""
    marked = any(seconds.by_seconds_alone(front, entry) for entry in reduced)
    return "* the most accurate in its time; one with no more ReLUs is at least as accurate." if marked else ""


def _left_out(entries: list[Json]) -> list[str]:
    """Name what was skipped and what failed, and why; those with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry["status"] in ("skipped", "failed"):
            found.setdefault((entry["status"], words.clean(entry.get("reason") or "")), []).append(entry["label"])
    return [
        f"{status.capitalize()} {'; '.join(map(words.clean, labels))}: {why or 'no reason is known'}"
        for (status, why), labels in found.items()
    ]


def _method(front: Json) -> str:
    """Say how the candidates were found, where the file says it."""
    settings = front["settings"] if isinstance(front.get("settings"), dict) else {}
    if not settings.get("method"):
        return ""
    said = f"Method: {words.clean(settings['method'])}"
    if settings.get("granularity") and settings["method"] not in ("deepreduce", "deepreduce-narrow", "channel-pruning"):
        said += f" by {words.clean(settings.get('granularity'))}"
    layers = settings.get("most_layers")
    if isinstance(layers, int) and layers > 0:
        said += f", in at most {words.many(layers, 'layer')}"
    if settings.get("search_epochs"):
        said += f", {words.epochs(settings['search_epochs'])} of search, counted with the training"
    if settings.get("rank_epochs") and isinstance(front.get("ranking"), list):
        kept = sum(bool(row.get("kept")) for row in front["ranking"] if isinstance(row, dict))
        said += (
            f", {words.many(len(front['ranking']), 'candidate')} ranked after {words.epochs(settings['rank_epochs'])}, "
        )
        said += f"{kept} trained in full"
    return said + "."


def _summary(front: Json) -> str:
    found = headline(front)
    if found.entry is None:
        return "No reduced network on the front has been measured."
    if front["teacher"]["validation"] is None:
        return "The teacher has no validation accuracy: nothing is compared."
    name, times = words.clean(found.entry["label"]), words.factor(front["teacher"]["relus"], found.entry["relus"])
    if found.guessing:
        return "The teacher is not measurably better than guessing: train it longer before anything is compared."
    if found.above:
        stage = words.clean(found.above["stage"])
        return f"The teacher seems under-trained, ReLUs in {stage} alone do better: train it longer before comparing."
    if found.refuted:
        return f"{times} fewer ReLUs: the validation images show no loss, the test images do: {name}."
    if not found.holds:
        return "Every reduced network on the front is measurably below the teacher."
    slow = seconds.no_faster(front, found.entry)
    return (
        f"{times} fewer ReLUs with no measurable loss (the 95 % interval of the change is not all below 0): {name}."
        + (f" {slow}" if slow else "")
    )


def _state(status: object) -> Text:
    style = {"done": _GOOD, "finished": _GOOD, "failed": _BAD, "skipped": _DIM}.get(str(status), "")
    return _plain(status, style)


def criticality_table(front: Json) -> Table:
    """Return the criticality of every stage, in the order of the network.

    Args:
        front: the parsed `front.json`.

    Raises:
        RunError: as for `front_table`.
    """
    check_front(front)
    rows = front["criticality"]
    known = [row for row in rows if words.number(row["criticality"]) is not None]
    power = words.UNKNOWN if front["exponent"] is None else f"{front['exponent']:g}"
    settings = front["settings"] if isinstance(front.get("settings"), dict) else {}
    epochs = settings.get("criticality_epochs")
    trained = "" if words.number(epochs) is None else f", {words.epochs(epochs)}"
    table = _table(
        "Criticality of each stage",
        [
            words.critical(len(known), *critical_ends(front)),
            f"Accuracy in % of the network with ReLUs in this stage alone{trained}; plain: without distillation.",
            f"C_k = (accuracy - lowest accuracy) / ReLUs^w, w = {power}.",
        ],
    )
    table.add_column("Stage", overflow="fold")
    for name in ("ReLUs", "Distilled", "Plain", "C_k"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", min_width=24)
    largest = max((row["criticality"] for row in known), default=0)
    for row in rows:
        value = words.number(row["criticality"])
        table.add_row(
            _plain(row["stage"]),
            words.count(row["relus"]),
            words.percent(row["accuracy"]),
            words.percent(row.get("accuracy_plain")),
            words.UNKNOWN if value is None else f"{value:.4f}",
            Bar(largest, 0, value, width=24, color=_GOOD) if value and value > 0 else "",
        )
    return table


def plan_table(plan: dict[str, Any]) -> Table:
    """Return the plan of a run: one row per training job, and what all of them cost together.

    Args:
        plan: `jobs` (each with `id`, `label`, `kind`, `relus`, `macs`, `epochs`, `seeds`, `hours`, `status`, `reason`),
            `hours` for the whole run, `workers`, `note`. A number that is unknown may be None. Reasons stand below the
            table.
    """
    jobs = plan["jobs"]
    open_jobs = [job for job in jobs if job["status"] == "to do"]
    workers = int(plan["workers"])
    hours = words.number(plan["hours"])
    table = _table(
        f"Plan: {words.many(len(jobs), 'job')}, {len(open_jobs)} to do",
        [
            f"All together about {_hours(hours)} with {words.many(workers, 'worker')}.",
            words.clean(plan.get("note") or ""),
            *_left_out(jobs),
        ],
    )
    table.show_footer = bool(open_jobs)
    table.add_column("Network", footer="To do, job by job", min_width=15, overflow="fold")
    table.add_column("Job", no_wrap=True)
    for name in ("ReLUs", "MACs", "Epochs", "Seeds"):
        table.add_column(name, justify="right", no_wrap=True)
    total = sum(words.number(job["hours"]) or 0 for job in open_jobs)
    table.add_column("Time", _hours(total), justify="right", no_wrap=True)
    table.add_column("Status", no_wrap=True)
    for job in jobs:
        trains = job["status"] != "skipped"
        table.add_row(
            _plain(job["label"]),
            _plain(job["kind"]),
            words.count(job["relus"]),
            words.macs(job["macs"]),
            words.count(job["epochs"] if trains else None),
            words.count(_many(job["seeds"]) if trains else None),
            _hours(job["hours"] if trains else None),
            _state(job["status"]),
            style="" if job["status"] == "to do" else _DIM,
        )
    return table


def _many(seeds: object) -> object:
    return len(seeds) if isinstance(seeds, list | tuple) else seeds


def _hours(hours: object) -> str:
    known = words.number(hours)
    return words.UNKNOWN if known is None else words.duration(known * 3600)


def profile_table(profile: dict[str, Any], *, layers: bool = False) -> Table:
    """Return ReLUs, MACs and parameters per stage and in total.

    Args:
        profile: `network`, `input`, `relus`, `macs`, `params`, `stages` (each with `name`, `resolution`, `relus`,
            `macs`, `params`, `layers`), `notes`; `before` holds the same totals and stages of the unreduced network.
        layers: with one row per ReLU layer under its stage as well.
    """
    before = profile.get("before")
    title = f"{words.clean(profile['network'])}, input {words.resolution(profile['input'])}"
    caption = [words.clean(note) for note in profile.get("notes") or []]
    if before:
        caption.insert(0, _saving(before, profile))
    marked = layers and any(
        row.get("after_addition") for stage in profile["stages"] for row in stage.get("layers") or []
    )
    if marked:
        caption.append("+ marks a ReLU after an addition.")
    table = _table(title, caption)
    table.add_column("Stage", overflow="fold", min_width=6)
    table.add_column("Size", justify="right", no_wrap=True)
    table.add_column("Layers", justify="right", no_wrap=True)
    # One 'before' less where layers are listed: their call sites need the room on 80 columns.
    shown = {
        "ReLUs": True,
        "before": bool(before),
        "MACs": True,
        " before": bool(before) and not layers,
        "Params": True,
    }
    columns = [name for name, wanted in shown.items() if wanted]
    for name in columns:
        table.add_column(name.strip(), justify="right", no_wrap=True, style=_DIM if "before" in name else "")
    earlier = {stage["name"]: stage for stage in (before or {}).get("stages") or []}
    for stage in profile["stages"]:
        rows = stage.get("layers") or []
        kept = sum(bool(layer.get("kept", True)) for layer in rows)
        old = earlier.get(stage["name"], {})
        table.add_row(
            _plain(stage["name"], "bold" if layers else ""),
            words.resolution(stage.get("resolution")),
            f"{kept} of {len(rows)}" if kept < len(rows) else str(kept),
            *_figures(stage, old, columns),
        )
        old_rows = {row["name"]: row for row in old.get("layers") or []}
        for layer in rows if layers else []:
            there = bool(layer.get("kept", True))
            site = Text("  ").append(words.clean(layer["name"])).append(" +" if layer.get("after_addition") else "")
            if layer.get("source"):
                site.append(f" {words.clean(layer['source'])}", style=_DIM)
            table.add_row(
                site,
                words.resolution(layer.get("shape")),
                "kept" if there else "removed",
                *_figures(
                    {**layer, "relus": layer.get("relus") if there else 0}, old_rows.get(layer["name"], {}), columns
                ),
                style="" if there else _DIM,
            )
    table.add_section()
    table.add_row(Text("Total", style="bold"), "", "", *_figures(profile, before or {}, columns))
    return table


def _figures(now: Json, before: Json, columns: list[str]) -> list[str]:
    cells = {
        "ReLUs": words.count(now.get("relus")),
        "before": words.count(before.get("relus")),
        "MACs": words.macs(now.get("macs")),
        " before": words.macs(before.get("macs")),
        "Params": words.count(now.get("params")),
    }
    return [cells[name] for name in columns]


def _saving(before: Json, after: Json) -> str:
    relus = words.factor(before["relus"], after["relus"])
    more = before["macs"] < after["macs"]
    macs = (
        f"{words.factor(after['macs'], before['macs'])} more"
        if more
        else f"{words.factor(before['macs'], after['macs'])} fewer"
    )
    return f"ReLUs: {relus} fewer. MACs: {macs}. 'before' is the network without any reduction."
