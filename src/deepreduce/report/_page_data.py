"""What the page shows, as plain texts and numbers: everything is decided here, the template only places it."""

from __future__ import annotations

import json
from typing import Any

from deepreduce.report import _seconds as seconds
from deepreduce.report import _words as words
from deepreduce.report._stages import Scale, Stage, full_network, map_rows, stages_of
from deepreduce.report.front import (
    Json,
    candidates,
    change,
    critical_ends,
    guesses,
    headline,
    holds,
    outdone,
    shared_split,
)

BAR_HEIGHT = 34  # pixels of the highest bar


def page_data(front: Json) -> dict[str, Any]:
    """Return the variables of `page.html` for a checked front."""
    teacher = front["teacher"]
    cards = _cards(front)
    groups = [
        ("On the front", [card for card in cards if card["role"] == "front"]),
        ("Trained, off the front", [card for card in cards if card["role"] == "rest"]),
        ("Failed", [card for card in cards if card["role"] == "failed"]),
        ("Skipped", [card for card in cards if card["role"] == "skipped"]),
    ]
    return {
        "network": words.clean(front["network"].get("name", "network")),
        "data_name": words.clean(front["data"].get("name", "data")),
        "headline": _headline(front),
        "split": shared_split(front),
        "has_test": any(entry["test"] for entry in (teacher, *candidates(front))),
        "across": [(name, seconds.heading(name)) for name in seconds.across(front)],
        "times": [seconds.heading(name) for name in _times(front)],
        "seconds_note": seconds.note(front),
        "teacher": cards[0],
        "teacher_facts": _teacher_facts(front, cards[0]),
        "front": groups[0][1],
        "groups": [(name, chosen) for name, chosen in groups if chosen],
        "total": len(cards) - 1,
        "map": _map(front, cards),
        "criticality": _criticality(front),
        "facts_groups": _facts(front),
        "command": words.clean(front["environment"].get("command") or ""),
    }


def _times(front: Json) -> list[str]:
    """Return the axes that are times."""
    return seconds.across(front)[1:]


def _map(front: Json, cards: list[dict[str, Any]]) -> dict[str, Any]:
    """The stage map, with a column for every stage that one of its networks has."""
    scale = _scale(front)
    by_key = {id(entry): card for (_, _, entry), card in zip(_keys(front), cards, strict=True)}
    rows = map_rows(front)
    names = list(dict.fromkeys(stage.name for _, stages in rows for stage in stages))
    found = []
    for place, (entry, stages) in enumerate(rows):
        own = dict(zip((stage.name for stage in stages), _bars(stages, scale), strict=True))
        card = by_key[id(entry)]
        label = card["label"] if place else "Full network"
        found.append({"card": card, "label": label, "full": not place, "cells": [own.get(name) for name in names]})
    return {"names": [words.clean(name) for name in names], "rows": found}


def chart_data(front: Json) -> dict[str, Any]:
    """Return what the script of the page needs to draw the front; every number is finite or None."""
    chosen = headline(front).entry or front["teacher"]
    fronts = seconds.fronts_of(front)
    points = []
    for key, role, entry in _keys(front):
        points.append(
            {
                "key": key,
                "label": words.shorten(entry["label"], 60),
                "role": role,
                "across": {name: seconds.value(entry, name) for name in fronts},
                "fronts": [name for name, ids in fronts.items() if entry["id"] in ids],
                "validation": _ends(entry["validation"]),
                "test": _ends(entry["test"]),
                "text": {split: _hover(front, entry, split) for split in ("validation", "test")},
            }
        )
    start = next(key for key, _, entry in _keys(front) if entry is chosen)
    titles = {name: seconds.title(front, name) for name in fronts}
    return {"points": points, "titles": titles, "split": shared_split(front), "start": start}


def _keys(front: Json) -> list[tuple[str, str, Json]]:
    """Every entry with the id of its place on the page and its role; ids from the file never become ids of the page."""
    on_front = {name for ids in seconds.fronts_of(front).values() for name in ids}
    found = [("n0", "teacher", front["teacher"])]
    for place, entry in enumerate(candidates(front), start=1):
        role = "front" if entry["id"] in on_front else "rest"
        found.append((f"n{place}", role if entry["status"] == "done" else entry["status"], entry))
    return found


def _ends(measured: Json | None) -> list[float] | None:
    if measured is None:
        return None
    values = [words.number(measured[key]) for key in ("accuracy", "low", "high")]
    return None if any(value is None for value in values) else [100 * (value or 0.0) for value in values]


def _hover(front: Json, entry: Json, split: str) -> list[str]:
    measured = entry[split]
    if measured is None:
        return []
    lines = [
        f"{words.count(entry['relus'])} ReLUs ({words.factor(front['teacher']['relus'], entry['relus'])} fewer)",
        f"{words.percent(measured['accuracy'])} % {split} ({_interval(measured)})",
        words.seeds(measured),
        f"{words.macs(entry.get('macs'))} MACs",
    ]
    times = [(name, seconds.value(entry, name)) for name in _times(front)]
    known = [f"{words.duration(time)} {seconds.heading(name)}" for name, time in times if time is not None]
    if known:
        lines.append(f"{', '.join(known)} per private inference, estimated")
    if entry is front["teacher"]:
        lines[0] = f"{words.count(entry['relus'])} ReLUs"
    return [line for line in lines if line]


def _interval(measured: Json) -> str:
    return f"{words.percent(measured['low'], 1)} to {words.percent(measured['high'], 1)}"


def _measured(measured: Json | None) -> dict[str, str] | None:
    if measured is None:
        return None
    return {
        "accuracy": words.percent(measured["accuracy"]),
        "interval": _interval(measured),
        "n": words.many(measured.get("n"), "image"),
        "seeds": words.seeds(measured),
    }


def _scale(front: Json) -> Scale:
    return Scale.of([full_network(front), *(stages_of(front, entry) for _, _, entry in _keys(front))])


def _cards(front: Json) -> list[dict[str, Any]]:
    scale = _scale(front)
    split = shared_split(front)
    return [_card(front, key, role, entry, scale, split) for key, role, entry in _keys(front)]


def _card(front: Json, key: str, role: str, entry: Json, scale: Scale, split: str) -> dict[str, Any]:
    teacher = front["teacher"]
    step = change(teacher[split], entry[split]) if entry is not teacher else None
    doubted = guesses(front) or outdone(front)
    return {
        "key": key,
        "role": role,
        "label": words.clean(entry["label"]),
        "relus": words.count(entry["relus"]),
        "factor": words.UNKNOWN if entry is teacher else words.factor(teacher["relus"], entry["relus"]),
        "macs": words.macs(entry.get("macs")),
        "params": words.count(entry.get("params")),
        "validation": _measured(entry["validation"]),
        "test": _measured(entry["test"]),
        "mapped": _measured(entry[split]),
        "brief": _brief(entry),
        "change": None if step is None else words.points(step[0]),
        "change_interval": None if step is None else f"{words.points(step[1], 1)} to {words.points(step[2], 1)}",
        "holds": role == "front" and bool(entry["validation"]) and holds(teacher, entry) and not doubted,
        "times": [words.duration(seconds.value(entry, name)) for name in _times(front)],
        "private": seconds.facts(front, entry),
        "quick": seconds.by_seconds_alone(front, entry),
        "trained": words.duration(entry.get("seconds")),
        "epochs": words.epochs(entry.get("epochs")),
        "reason": words.clean(entry.get("reason") or ""),
        "stages": _bars(stages_of(front, entry), scale),
        "recipe": json.dumps(entry["recipe"], indent=2, ensure_ascii=False),
    }


def _brief(entry: Json) -> str:
    """Return the accuracies that are known, each with the images it was measured on."""
    known = [(split, entry[split]) for split in ("validation", "test") if entry[split]]
    # A no-break space keeps a number and its percent sign on one line.
    return ", ".join(f"{split} {words.percent(measured['accuracy'])}\u00a0%" for split, measured in known)


def _bars(stages: tuple[Stage, ...], scale: Scale) -> list[dict[str, Any]]:
    layers = sum(len(stage.bars) for stage in stages)
    width = 14 if layers <= 20 else 8 if layers <= 40 else 5
    found = []
    for stage in stages:
        bars = []
        for place, bar in enumerate(stage.bars):
            height = round(BAR_HEIGHT * scale.height(bar.relus), 1)
            state = "kept" if bar.kept else "gone"
            relus = words.count(bar.relus)
            title = f"{words.clean(bar.name)}: {relus} ReLUs" + ("" if bar.kept else " removed")
            bars.append(
                {
                    "x": place * (width + 3) + 1,
                    "y": round(BAR_HEIGHT - height + 1, 1),
                    "width": width,
                    "height": height,
                    "state": state,
                    "title": title,
                }
            )
        found.append(
            {
                "name": words.clean(stage.name),
                "words": words.clean(stage.words),
                "relus": words.count(stage.relus),
                "width": max(len(bars), 1) * (width + 3),
                "height": BAR_HEIGHT + 2,
                "bars": bars,
            }
        )
    return found


def _headline(front: Json) -> dict[str, Any]:
    found = headline(front)
    teacher = front["teacher"]
    entry = found.entry
    if entry is None:
        return {
            "title": "No reduced network on the front has been measured",
            "lines": ["The list of candidates below says why."],
            "tiles": [],
        }
    times = words.factor(teacher["relus"], entry["relus"])
    lines = [
        f"{words.clean(entry['label'])} keeps {words.count(entry['relus'])} of {words.count(teacher['relus'])} ReLUs. "
        + _compared(teacher[found.split], entry[found.split], found.split)
    ]
    if found.guessing:
        title = f"{times} fewer ReLUs; the teacher is not measurably better than guessing, so nothing is claimed"
        lines.append("Train the teacher longer, or look whether images and labels belong together.")
    elif found.above:
        stage, own = words.clean(found.above["stage"]), words.percent(found.above["accuracy"])
        title = f"{times} fewer ReLUs; the teacher seems under-trained, so nothing is claimed"
        lines.append(
            f"A network with the ReLUs of {stage} alone is right on {own} % of the validation images, more than the "
            "teacher's 95 % interval holds. Train the teacher longer."
        )
    elif found.holds and found.change:
        title = f"{times} fewer ReLUs at {words.points(found.change[0])} points of accuracy"
        both = "validation and test" if found.split == "test" else "validation"
        lines.append(
            "It is the smallest network on the front without a measurable loss: the 95 % interval of its change "
            f"reaches zero on {both} images. That does not prove that there is none; this many images cannot show one."
        )
    elif found.refuted and found.change:
        title = f"{times} fewer ReLUs at {words.points(found.change[0])} points of accuracy, a measurable loss"
        lines.append(
            "It is the smallest network on the front for which the validation images show no loss. The test images do "
            "show one. They do not choose, so no other network takes its place here."
        )
    elif teacher["validation"] is None:
        title = f"{times} fewer ReLUs; the teacher has no validation accuracy, so nothing is claimed"
    else:
        title = "Every reduced network on the front is measurably below the teacher"
        lines.insert(0, "This is the most accurate of them.")
    if slow := seconds.no_faster(front, entry):
        lines.append(slow)
    lines.append(_seed_note(entry[found.split]))
    # A no-break space keeps a number and its percent sign on one line.
    lines = [line.replace(" %", "\u00a0%") for line in lines]
    return {"title": title, "lines": lines, "tiles": _tiles(front, entry, found.split, found.change)}


def _compared(teacher: Json | None, reduced: Json, split: str) -> str:
    images = f"On {words.many(reduced.get('n'), f'{split} image')}" if reduced.get("n") else f"On the {split} images"
    own = (
        f"{images} it is right {words.percent(reduced['accuracy'])} % of the time (95 % interval {_interval(reduced)})"
    )
    if teacher is None:
        return f"{own}."
    line = f"{own}; the teacher, which has all ReLUs, {words.percent(teacher['accuracy'])} % ({_interval(teacher)})."
    step = change(teacher, reduced)
    if step is None:
        return line
    return f"{line} The change is {words.points(step[0])} points (95 % interval {_signed(step)})."


def _signed(step: tuple[float, float, float]) -> str:
    return f"{words.points(step[1])} to {words.points(step[2])}"


def _seed_note(measured: Json) -> str:
    spread = words.seeds(measured)
    if spread:
        return f"Over training seeds: {spread}. The intervals cover the choice of images, not the choice of seed."
    return "One training seed: the intervals cover the choice of images, not the luck of one training."


def _tiles(front: Json, entry: Json, split: str, step: tuple[float, float, float] | None) -> list[dict[str, str]]:
    teacher = front["teacher"]
    tiles = [
        {
            "name": "ReLUs",
            "value": words.count(entry["relus"]),
            "note": f"{words.factor(teacher['relus'], entry['relus'])} fewer than {words.count(teacher['relus'])}",
        },
        {
            "name": f"{split.capitalize()} accuracy",
            "value": f"{words.percent(entry[split]['accuracy'])} %",
            "note": "no teacher to compare with"
            if step is None
            else f"{words.points(step[0])} points, {_signed(step)}",
        },
    ]
    private = seconds.tile(front, entry)
    if private is not None:
        tiles.append(private)
    if words.number(front["seconds"]) is not None:
        number = sum(entry["status"] == "done" for entry in candidates(front))
        note = f"{words.many(number, 'trained candidate')} and the teacher, all jobs together"
        tiles.append({"name": "Training", "value": words.duration(front["seconds"]), "note": note})
    return tiles


def _teacher_facts(front: Json, card: dict[str, Any]) -> list[tuple[str, str]]:
    network = front["network"]
    facts = [
        ("Network", words.clean(network.get("name", words.UNKNOWN))),
        ("Input", words.resolution(network.get("input"))),
        ("Classes", words.count(network.get("classes"))),
        ("ReLUs", card["relus"]),
        ("MACs", card["macs"]),
        ("Parameters", card["params"]),
    ]
    for split in ("validation", "test"):
        measured = card[split]
        value = "not measured"
        if measured:
            value = f"{measured['accuracy']} % (95 % interval {measured['interval']}), {measured['n']}"
            value += f"; {measured['seeds']}" if measured["seeds"] else ""
        facts.append((f"{split.capitalize()} accuracy", value))
    facts += card["private"]
    facts.append(("Training", f"{card['epochs']}, {card['trained']}"))
    return facts


def _criticality(front: Json) -> dict[str, Any]:
    rows = front["criticality"]
    known = [row for row in rows if words.number(row["criticality"]) is not None]
    largest = max((row["criticality"] for row in known), default=0.0)
    found = []
    for row in rows:
        value = words.number(row["criticality"])
        share = 0.0 if value is None or largest <= 0 else max(0.0, 100 * value / largest)
        found.append(
            {
                "stage": words.clean(row["stage"]),
                "relus": words.count(row["relus"]),
                "accuracy": words.percent(row["accuracy"]),
                "plain": words.percent(row.get("accuracy_plain")),
                "value": words.UNKNOWN if value is None else f"{value:.4f}",
                "share": f"{share:.1f}",
            }
        )
    most, least = critical_ends(front)
    return {
        "rows": found,
        "exponent": words.UNKNOWN if front["exponent"] is None else f"{front['exponent']:g}",
        "most": [words.clean(stage) for stage in most],
        "said": words.critical(len(known), most, least),
    }


def _facts(front: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    data = {key: value for key, value in front["data"].items() if key != "classes"}
    for split in ("train", "validation", "test"):
        if words.number(data.get(split)) is not None:
            data[split] = words.many(data[split], "image")
    names = front["data"].get("classes")
    if isinstance(names, list):
        data["classes"] = f"{len(names)}: " + words.shorten(", ".join(map(str, names)), 160)
    environment = {key: value for key, value in front["environment"].items() if key != "command"}
    return [("Data", _flat(data)), ("Settings", _flat(front["settings"])), ("Environment", _flat(environment))]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as lines: `distillation.temperature` 4."""
    if isinstance(value, dict) and value:
        found = []
        for key, inner in value.items():
            found += _flat(inner, f"{prefix}.{words.clean(key)}" if prefix else words.clean(key))
        return found
    return [(prefix, _value(value))] if prefix else []


def _value(value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list):
        return ", ".join(
            json.dumps(each, ensure_ascii=False) if isinstance(each, dict | list) else words.clean(each)
            for each in value
        )
    return words.clean(value)
