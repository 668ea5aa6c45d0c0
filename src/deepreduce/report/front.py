"""Reading a front: what must be in the dictionary, and the few figures that are derived from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deepreduce.errors import RunError, problem
from deepreduce.report._words import number

Json = dict[str, Any]

FORMAT, VERSION = "deepreduce.front", 1

_TOP = {
    "network": dict,
    "data": dict,
    "settings": dict,
    "census": dict,
    "teacher": dict,
    "criticality": list,
    "exponent": (int, float, type(None)),
    "candidates": list,
    "front": list,
    "environment": dict,
    "seconds": (int, float, type(None)),
}
_ENTRY = {
    "id": str,
    "label": str,
    "recipe": (dict, type(None)),
    "relus": (int, float, type(None)),
    "stages": (list, type(None)),
    "status": str,
    "validation": (dict, type(None)),
    "test": (dict, type(None)),
}
_MEASURED = {"accuracy": (int, float), "low": (int, float), "high": (int, float)}
_CRITICALITY = {
    "stage": str,
    "relus": (int, float, type(None)),
    "accuracy": (int, float, type(None)),
    "criticality": (int, float, type(None)),
}
_LAYER = {"name": str, "relus": (int, float, type(None))}


def check_front(front: object) -> None:
    """Refuse a dictionary that is not a front of a version this program knows.

    Raises:
        RunError: with the place (`candidates[3].validation.accuracy`) of the first thing that is missing or wrong.
    """
    if not isinstance(front, dict):
        raise _refusal("front.json must hold a JSON object", got=type(front).__name__)
    if front.get("format") != FORMAT:
        raise _refusal(f"'format' must be {FORMAT!r}", got=repr(front.get("format")), where="format")
    if type(front.get("version")) is not int or front["version"] != VERSION:
        raise RunError(
            problem(
                f"'version' must be {VERSION}, the only version of front.json that this program reads",
                got=repr(front.get("version")),
                remedy="use the version of deepreduce that wrote the file, or run 'deepreduce reduce' again",
                where="front.json, version",
            )
        )
    _need(front, _TOP, "")
    _check_stages(front["census"].get("stages"), "census.stages")
    _check_entry(front["teacher"], "teacher")
    for place, entry in enumerate(front["candidates"]):
        _check_entry(entry, f"candidates[{place}]")
    for place, row in enumerate(front["criticality"]):
        _need(row, _CRITICALITY, f"criticality[{place}]")
    _check_private(front)
    known = entries_by_id(front)
    fronts = {"front": front["front"], **_seconds(front)}
    for where, ids in fronts.items():
        for place, key in enumerate(ids):
            if not isinstance(key, str) or key not in known:
                raise _refusal(
                    f"every id in '{where}' must belong to the teacher or to a candidate",
                    got=repr(key),
                    where=f"{where}[{place}]",
                )


def _check_private(front: Json) -> None:
    """Check what is said of private inference, which older runs do not say."""
    if front.get("private") is not None:
        links = _need(front["private"], {"links": dict}, "private")["links"]
        for name, link in links.items():
            _need(link, {}, f"private.links.{name}")
    if not isinstance(front.get("fronts_in_seconds", {}), dict):
        raise _refusal(
            "'fronts_in_seconds' must be an object", got=repr(front["fronts_in_seconds"]), where="fronts_in_seconds"
        )
    for where, ids in _seconds(front).items():
        if not isinstance(ids, list):
            raise _refusal(f"'{where}' must be a list", got=type(ids).__name__, where=where)


def _seconds(front: Json) -> Json:
    return {f"fronts_in_seconds.{link}": ids for link, ids in front.get("fronts_in_seconds", {}).items()}


def _check_entry(entry: object, where: str) -> None:
    found = _need(entry, _ENTRY, where)
    if found["status"] not in ("done", "failed", "skipped"):
        raise _refusal("'status' must be done, failed or skipped", got=repr(found["status"]), where=f"{where}.status")
    if found["status"] == "done" and number(found["relus"]) is None:
        raise _refusal("a finished network must have its number of ReLUs", got="null", where=f"{where}.relus")
    for split in ("validation", "test"):
        if found[split] is not None:
            _need(found[split], _MEASURED, f"{where}.{split}")
    for key in ("latency", "private"):
        if not isinstance(found.get(key), dict | None):
            raise _refusal(f"{key!r} must be an object or null", got=repr(found[key]), where=f"{where}.{key}")
    _check_stages(found["stages"] or [], f"{where}.stages")


def _check_stages(stages: object, where: str) -> None:
    if not isinstance(stages, list):
        raise _refusal("'stages' must be a list", got=type(stages).__name__, where=where)
    for place, stage in enumerate(stages):
        inside = f"{where}[{place}]"
        _need(stage, {"name": str, "layers": list}, inside)
        for spot, layer in enumerate(stage["layers"]):
            _need(layer, _LAYER, f"{inside}.layers[{spot}]")


def _need(found: object, keys: dict[str, Any], where: str) -> Json:
    if not isinstance(found, dict):
        raise _refusal("this place must hold a JSON object", got=type(found).__name__, where=where)
    for key, kind in keys.items():
        place = f"{where}.{key}" if where else key
        if key not in found:
            raise _refusal(f"the key {key!r} must be present", got=f"the keys {sorted(map(str, found))}", where=place)
        if not isinstance(found[key], kind) or isinstance(found[key], bool):
            raise _refusal(f"{key!r} has the wrong kind of value", got=type(found[key]).__name__, where=place)
    return found


def _refusal(must: str, *, got: object, where: str = "") -> RunError:
    return RunError(
        problem(
            must,
            got=got,
            remedy="write the file again with 'deepreduce reduce' on the same run",
            where=f"front.json, {where}" if where else "front.json",
        )
    )


def entries_by_id(front: Json) -> dict[str, Json]:
    """Return every entry under its id, the teacher first."""
    return {entry["id"]: entry for entry in (front["teacher"], *front["candidates"])}


def front_entries(front: Json) -> list[Json]:
    """Return the reduced networks on the front, most ReLUs first; the teacher is not among them."""
    known = entries_by_id(front)
    chosen = [known[key] for key in dict.fromkeys(front["front"]) if key != front["teacher"]["id"]]
    return sorted(chosen, key=lambda entry: -(number(entry["relus"]) or 0))


def candidates(front: Json) -> list[Json]:
    """Return every candidate but the teacher, most ReLUs first, those of unknown size last."""
    rest = [entry for entry in front["candidates"] if entry["id"] != front["teacher"]["id"]]
    return sorted(rest, key=lambda entry: -(number(entry["relus"]) or 0))


def latency(entry: Json) -> float | None:
    """Return the estimated online seconds of one private inference with DELPHI, or None."""
    return number((entry.get("latency") or {}).get("delphi"))


def shared_split(front: Json) -> str:
    """Return 'test' where the teacher and all networks on the front have a test accuracy, else 'validation'."""
    tested = [front["teacher"]["test"], *(entry["test"] for entry in front_entries(front))]
    return "test" if all(tested) else "validation"


def change(teacher: Json | None, reduced: Json | None) -> tuple[float, float, float] | None:
    """Return the change of accuracy in percentage points and the ends of its 95 % interval.

    The interval is Newcombe's (Statistics in Medicine 17, 1998, method 10): it combines the two Wilson intervals as if
    the two networks had seen independent images. They saw the same ones, so it is as a rule too wide, never an
    invitation to see a difference where there is none. It does not cover the spread over training seeds.

    Args:
        teacher: a `validation` or `test` object of the teacher, or None.
        reduced: the same of the reduced network.

    Returns:
        (change, low, high) in points, or None where either is missing.
    """
    if teacher is None or reduced is None:
        return None
    values = [number(measured[key]) for measured in (teacher, reduced) for key in ("accuracy", "low", "high")]
    if any(value is None for value in values):
        return None
    before, before_low, before_high, after, after_low, after_high = (value or 0.0 for value in values)
    step = after - before
    down = math.hypot(after - after_low, before_high - before)
    up = math.hypot(after_high - after, before - before_low)
    return 100 * step, 100 * (step - down), 100 * (step + up)


def holds(teacher: Json, reduced: Json) -> bool:
    """Return whether a network is not measurably below the teacher, on validation images and on test images if read.

    Not measurably below: the 95 % interval of the change reaches zero. That is stricter than overlapping intervals,
    which it implies, and still no proof of equal accuracy: it says that this many images cannot show a loss.
    """
    splits = ["validation"] + (["test"] if teacher["test"] and reduced["test"] else [])
    return all(_reaches_zero(change(teacher[split], reduced[split])) for split in splits)


@dataclass(frozen=True)
class Headline:
    """The one network that the report leads with.

    Attributes:
        entry: the network; None where no reduced network on the front has a validation accuracy.
        holds: whether `holds(teacher, entry)`. Where no network does on the validation images, `entry` is the most
            accurate one.
        refuted: whether it holds on the validation images, and not on the test images.
        split: the images whose figures are reported: 'test' where both networks have them, else 'validation'.
        change: change of accuracy against the teacher on `split`, in points, with the ends of its 95 % interval.
        guessing: whether `guesses(front)`; then "no loss" would say nothing.
        above: `outdone(front)`; then it would say little.
    """

    entry: Json | None
    holds: bool
    refuted: bool
    split: str
    change: tuple[float, float, float] | None
    guessing: bool = False
    above: Json | None = None


def headline(front: Json) -> Headline:
    """Pick the smallest network on the front that is not measurably below the teacher on the validation images.

    They alone choose. The test images, where they were read, can take the claim back; no other network takes its place
    then, because that one would have been chosen by the test images.
    """
    teacher = front["teacher"]
    measured = [entry for entry in front_entries(front) if entry["validation"] is not None]
    if not measured:
        return Headline(None, False, False, "validation", None)
    holding = [entry for entry in measured if _reaches_zero(change(teacher["validation"], entry["validation"]))]
    if holding:
        entry = min(holding, key=lambda each: each["relus"])
    else:
        entry = max(measured, key=lambda each: each["validation"]["accuracy"])
    split = "test" if teacher["test"] and entry["test"] else "validation"
    stands = holds(teacher, entry)
    refuted = bool(holding) and not stands
    step = change(teacher[split], entry[split])
    return Headline(entry, stands, refuted, split, step, guesses(front), outdone(front))


def guesses(front: Json) -> bool:
    """Return whether the validation images cannot tell the teacher from one that guesses.

    That is where the interval of its accuracy reaches down to one in as many as there are classes.
    """
    classes, measured = front["network"].get("classes"), front["teacher"]["validation"]
    return bool(isinstance(classes, int) and classes > 0 and measured and measured["low"] <= 1 / classes)


def outdone(front: Json) -> Json | None:
    """Return the best network that measured criticality, if it is above the teacher's interval; else None.

    It keeps the ReLUs of one stage alone. Where that is enough to be better than the teacher, which has all of them,
    the teacher seems to have been trained too little for a comparison.
    """
    measured = front["teacher"]["validation"]
    rows = [row for row in front["criticality"] if number(row["accuracy"]) is not None]
    best = max(rows, key=lambda row: row["accuracy"], default=None)
    return best if best and measured and best["accuracy"] > measured["high"] else None


def critical_ends(front: Json) -> tuple[list[str], list[str]]:
    """Return the stages of the largest and of the smallest criticality, several where they are equal.

    Both are empty where fewer than two stages were measured, or all are equal.
    """
    known = {row["stage"]: row["criticality"] for row in front["criticality"] if number(row["criticality"]) is not None}
    largest, smallest = (pick(known.values(), default=0) for pick in (max, min))
    if largest == smallest:
        return [], []
    most, least = ([stage for stage, value in known.items() if value == end] for end in (largest, smallest))
    return most, least


def _reaches_zero(step: tuple[float, float, float] | None) -> bool:
    return step is not None and step[2] >= 0
