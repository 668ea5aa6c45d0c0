"""What each network costs privately: the estimates that a run holds, and how they are said."""

from __future__ import annotations

from typing import Any

from deepreduce.report import _words as words
from deepreduce.report.front import Json, candidates, latency

RELUS, DELPHI = "relus", "delphi"
"""What a front can be drawn against, beside the links."""


def links_of(front: Json) -> dict[str, Json]:
    """Return the links over which the seconds of some network are known, by name; empty for a run without estimates."""
    links = (front.get("private") or {}).get("links") or {}
    entries = (front["teacher"], *candidates(front))
    return {name: link for name, link in links.items() if any(seconds(entry, name) is not None for entry in entries)}


def seconds(entry: Json, link: str) -> float | None:
    """Return the estimated online seconds of one inference with our engine, or None."""
    return words.number(_phase(entry, "online", "seconds", link))


def across(front: Json) -> list[str]:
    """Return what accuracy can be drawn against: ReLUs, then the links, or DELPHI's seconds in runs without links."""
    if front.get("private") is not None:  # our engine was asked; where it cannot run a network, nobody's seconds count
        return [RELUS, *links_of(front)]
    known = any(latency(entry) is not None for entry in (front["teacher"], *candidates(front)))
    return [RELUS, DELPHI] if known else [RELUS]


def value(entry: Json, name: str) -> float | None:
    """Return a network's place on such an axis, or None."""
    if name == RELUS:
        return words.number(entry["relus"])
    return latency(entry) if name == DELPHI else seconds(entry, name)


def fronts_of(front: Json) -> dict[str, list[str]]:
    """Return the ids on the front, for each thing that accuracy can be drawn against."""
    quick = front.get("fronts_in_seconds") or {}
    by_relus: list[str] = front["front"]
    return {name: list(quick.get(name, by_relus)) for name in across(front)}


def on_a_front(front: Json) -> list[Json]:
    """Return the reduced networks on the front of ReLUs or on one of seconds, most ReLUs first."""
    names = {name for ids in fronts_of(front).values() for name in ids}
    return [entry for entry in candidates(front) if entry["id"] in names]


def by_seconds_alone(front: Json, entry: Json) -> bool:
    """Tell whether a network is on a front of seconds, and not on that of ReLUs."""
    return entry["id"] not in front["front"] and any(entry["id"] in ids for ids in fronts_of(front).values())


def title(front: Json, name: str) -> str:
    """Return the title of such an axis, on one line or two."""
    if name == RELUS:
        return "ReLUs for one image (log scale)"
    if name == DELPHI:
        return f"seconds per private inference (log scale),\n{words.LATENCY}"
    return f"seconds from image to class (log scale),\nestimated, {link_words(front, name)}"


def heading(name: str) -> str:
    """Return what a column or a button of it is called."""
    return {RELUS: "ReLUs", DELPHI: "Latency"}.get(name, words.clean(name).upper())


def link_words(front: Json, name: str) -> str:
    """Say what a link is: `LAN: 1,000 Mbit/s, 1 ms`."""
    link = links_of(front)[name]
    speed, delay = words.number(link.get("bits_per_second")), words.number(link.get("round_trip_seconds"))
    if speed is None or delay is None:
        return heading(name)
    return f"{heading(name)}: {speed / 1e6:,.0f} Mbit/s, {1e3 * delay:g} ms"


def note(front: Json) -> str:
    """Say how the seconds came about."""
    links = links_of(front)
    if not links and front.get("private") is not None:
        return "No network of this run can run privately as it is; each says why."
    if not links:
        return f"Latency: one private inference, {words.LATENCY}."
    said = "; ".join(link_words(front, name) for name in links)
    about = front["private"]
    cores = words.number(about.get("cores"))
    each = "" if cores is None else f", {words.many(cores, 'core')} for each party"
    rest = f", from constants measured on {words.clean(about['hardware'])}" if about.get("hardware") else ""
    return f"{said}: estimated seconds from an image to its class with deepreduce{each}{rest}."


def no_faster(front: Json, entry: Json) -> str:
    """Say so where a network is no faster privately than the full one; empty where it is, or nothing is known."""
    links = list(links_of(front))
    times = [(value(front["teacher"], name), value(entry, name)) for name in links]
    known = [(before, after) for before, after in times if before is not None and after is not None]
    if not known or any(after < 0.95 * before for before, after in known):
        return ""
    return (
        "Privately it is no faster than the full network: what costs there is something else than these ReLUs. Every "
        "layer that keeps one takes a round trip, however few it keeps; max pooling of 2x2 takes two, of 3x3 four."
    )


def facts(front: Json, entry: Json) -> list[tuple[str, str]]:
    """Return what is known of a network's private cost, as lines of a name and a value."""
    links = [name for name in links_of(front) if seconds(entry, name) is not None]
    found = []
    if links:
        found.append(("Private, online", _over(entry, "online", links)))
        found.append(("Private, before the image", _over(entry, "offline", links)))
    elif reason := (entry.get("private") or {}).get("reason"):
        found.append(("Private inference", f"not possible as it is: {words.clean(reason)}"))
    if latency(entry) is not None and (links or front.get("private") is None):
        found.append(("With DELPHI", f"{words.duration(latency(entry))} ({words.LATENCY})"))
    return found


def tile(front: Json, entry: Json) -> dict[str, str] | None:
    """Return the headline's private seconds, or None where nothing is known."""
    teacher = front["teacher"]
    names = [name for name in across(front)[1:] if value(entry, name) is not None]
    if not names:
        return None
    said = []
    for place, name in enumerate(names):
        own = f"{words.duration(value(entry, name))} " if place else ""
        before = value(teacher, name)
        compared = "" if before is None else f"teacher {words.duration(before)}"
        over = words.LATENCY if name == DELPHI else f"{own}over {heading(name)}"
        said.append(f"{over} ({compared})" if compared else over)
    note = "; ".join(said) if names == [DELPHI] else f"estimated, {'; '.join(said)}"
    return {"name": "Private inference", "value": words.duration(value(entry, names[0])), "note": note}


def _over(entry: Json, phase: str, links: list[str]) -> str:
    times = [f"{words.duration(_phase(entry, phase, 'seconds', name))} over {heading(name)}" for name in links]
    trips, size = _phase(entry, phase, "round_trips"), words.size(_phase(entry, phase, "bytes"))
    more = f"; {words.many(trips, 'round trip')}" if words.number(trips) is not None else ""
    return f"{', '.join(times)}{more}, {size}"


def _phase(entry: Json, *keys: str) -> Any:
    found: Any = entry.get("private")
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
