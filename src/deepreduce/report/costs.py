"""The table of an estimate: what one private inference costs, offline and online apart."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from deepreduce.report import _words as words
from deepreduce.report.tables import _table

_NAMES = {"ours": "Ours", "delphi": "DELPHI", "cheetah": "Cheetah"}
_PHASES = {"setup": "set-up", "offline": "offline", "online": "online"}


def estimate_table(found: dict[str, Any]) -> Table:
    """Return the estimate as a table: a column for each phase of each protocol.

    Args:
        found: from `deepreduce.estimate`. Of one protocol the set-up of a connection has a column, too.
    """
    protocols = found["protocols"]
    title = f"{words.clean(found['network'])}: {words.count(found['relus'])} ReLUs, {words.macs(found['macs'])} MACs"
    table = _table(title, ["One image. -: not known, or not a part of the protocol."])
    columns = [
        (cost, phase)
        for cost in protocols.values()
        for phase in (_PHASES if len(protocols) == 1 else ("offline", "online"))
        if cost[phase] is not None
    ]
    table.add_column("", no_wrap=True)
    for cost, phase in columns:
        table.add_column(f"{_NAMES[cost['protocol']]}\n{_PHASES[phase]}", justify="right", no_wrap=True)

    def row(label: str, *cells: str, last: bool = False) -> None:
        table.add_row(Text(label), *cells, end_section=last)

    phases = [cost[phase] for cost, phase in columns]
    row("AND gates", *(_short(phase["and_gates"]) for phase in phases))
    row("To the server", *(words.size(phase["sent_bytes"]) for phase in phases))
    row("To the client", *(words.size(phase["received_bytes"]) for phase in phases))
    row("Both ways", *(words.size(phase["bytes"]) for phase in phases))
    row("Round trips", *(words.count(phase["round_trips"]) for phase in phases), last=True)
    row("Computing", *(words.duration(phase["compute_seconds"]) for phase in phases))
    names = list(found["links"])
    for name in names:
        cells = [words.duration(phase["seconds"][name]) for phase in phases]
        row(f"Over {_link(name)}", *cells, last=name == names[-1])
    for party in ("client", "server"):
        cells = [words.size(cost[f"{party}_bytes"]) if phase == "offline" else "" for cost, phase in columns]
        row(f"Stored at {party}", *cells)
    return table


def estimate_notes(found: dict[str, Any]) -> list[str]:
    """Return what a reader must know besides: the links, where numbers come from, and what is left out."""
    lines = []
    for name, link in found["links"].items():
        speed, delay = link["bits_per_second"] / 1e6, link["round_trip_seconds"] * 1e3
        lines.append(f"{_link(name)}: {speed:,.0f} Mbit/s, round trip {delay:g} ms")
    for cost in found["protocols"].values():
        name = _NAMES[cost["protocol"]]
        own = f", {found['cores']} cores for each party" if cost["protocol"] == "ours" else ""
        lines.append(f"{name}: {words.clean(cost['source'])}; {words.clean(cost['hardware'])}{own}.")
        if cost["protocol"] == "ours" and found["together"] > 1:
            lines.append(f"{name}, offline: what each of {found['together']:,} has that are prepared together.")
        if cost["setup"] is not None and len(found["protocols"]) > 1:  # alone it has a column
            setup = cost["setup"]
            size = f", {words.size(setup['bytes'])}" if setup["bytes"] else ""
            lines.append(f"{name}, once per connection: {words.duration(setup['compute_seconds'])}{size}.")
        lines.append(f"{name}, not accounted for: {'; '.join(map(words.clean, cost['not_accounted']))}.")
    return [*lines, *(f"note: {words.clean(note)}" for note in found["notes"])]


def _link(name: object) -> str:
    text = words.clean(name)
    return text.upper() if text in ("lan", "wan") else text


def _short(count: object) -> str:
    """Write gates: exactly up to a hundred thousand, then in millions."""
    known = words.number(count)
    if known is None or known < 1e5:
        return words.UNKNOWN if not known else words.count(known)
    return f"{known / 1e6:,.1f} M"
