"""The content of a results file as tables to read; used by `reproduction.py`."""

from __future__ import annotations

import statistics
from typing import Any

from reproduction_private import LINKS

Json = dict[str, Any]


def as_text(content: Json) -> str:
    """Lay everything out as text."""
    lines = []
    if not content["comparable_with_the_papers"]:
        lines += [
            "Not at full size (narrower networks or a part of the images): accuracies do not compare with the papers';",
            "published ReLU counts are scaled by the width to find the network to show.",
            "",
        ]
    columns = f"{'here':>33}  {'ours':>33}"
    lines += ["Paper beside ours; accuracies in %, in brackets the 95 % interval", ""]
    lines.append(f"{'data':<14}{'network':<17}{'method':<12}{'ReLUs':>10}  {'paper':>6}  {columns}  ours-paper")
    for row in content["rows"]:
        paper = "-" if row["accuracy"] is None else f"{row['accuracy']:.2f}"
        gap = "-" if row["ours_minus_paper"] is None else f"{row['ours_minus_paper']:+.2f}"
        relus = f"{'' if row['exact'] else '~'}{row['relus']:,}"
        lines.append(
            f"{row['data']:<14}{row['network']:<17}{row['method']:<12}{relus:>10}  {paper:>6}  "
            f"{_cell(row['here']):>33}  {_cell(row['ours']):>33}  {gap:>10}"
        )
    lines += ["", "Channel pruning; baseline -> pruned (change), MACs, ReLUs", ""]
    for row in content["comparison"]:
        lines.append(f"{row['data']:<10}{row['method']:<17}paper {_pruned(row)}")
        for name in ("here", "ours"):
            text = _pruned({**row[name], "pruned": row[name]["accuracy"]}) if row[name] else "-"
            lines.append(f"{'':<27}{name:<5} {text}")
    lines += ["", "Claims", ""]
    for claim in content["claims"]:
        lines.append(
            f"{claim['text']}: paper {_value(claim['value'])} {claim['unit']}, here {_value(claim['here'])}"
            + (f" ({claim['reason']})" if claim.get("reason") else "")
        )
    for against in content["versus"]:
        span = "" if against["low"] is None else f" [{against['low']:+.2f}, {against['high']:+.2f}]"
        over = f"{against['difference']:+.2f}{span} points over {_seeds(against['seeds'])}"
        lines += ["", f"{against['network']}: {against['ours']} minus {against['method']}, test images: {over}", ""]
        for row in against["rows"]:
            ours, other = statistics.fmean(row["ours"]), statistics.fmean(row["other"])
            difference = f"{ours:6.2f} - {other:6.2f} = {ours - other:+6.2f}"
            lines.append(f"{row['relus']:>9,}  {difference}  ({_seeds(len(row['ours']))}, ours {row['our_relus']:,})")
    lines += ["", "Everything that was trained", ""]
    lines.append(
        f"{'network':<17}{'method':<20}{'ReLUs':>9}  {'held out':>8}  {'accuracy':>24}  {'epochs (search)':>15}"
        f"  {'seeds':>5}  {'seconds':>8}"
    )
    for m in sorted(content["measured"], key=lambda m: (m["network"], -m["relus"], m["method"])):
        lines.append(
            f"{m['network']:<17}{_name(m):<20}{m['relus']:>9,}  {m['validation']:>8.2f}  {_interval(m):>24}  "
            f"{m['epochs']:>8} ({m['search_epochs']:>4})  {m['seeds']:>5}  {m['seconds']:>8.1f}  {m['split']}"
        )
    if content["private"] is not None:
        lines += _private(content)
    for time in content["epoch_times"]:
        lines.append(
            f"epoch of {time['network']['name']}, width {time['network']['width']:g}, {time['images']:,} images, on "
            f"{time['device']}: {time['our_epoch_seconds']:.2f} s, plain loop {time['plain_epoch_seconds']:.2f} s "
            f"({time['ratio']:.1f} times)"
            + (f", distilled {taught:.2f} s" if (taught := time.get("our_distilled_epoch_seconds")) else "")
        )
    return "\n".join(lines)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _private(content: Json) -> list[str]:
    """Lay out what networks cost privately: seconds from the image to the label, over every link."""
    ran = sorted(
        (m for m in content["measured"] if m["private"]), key=lambda m: (m["network"], m["method"], -m["relus"])
    )
    links = [link for link in LINKS if any(link in m["private"] for m in ran)]
    lines = ["", "What they cost privately, online", ""]
    lines.append(
        f"{'network':<17}{'method':<20}{'ReLUs':>9}  {'accuracy':>8}  {'sent':>9}  {'round trips':>11}"
        + "".join(f"  {LINKS[link]:>18}" for link in links)
    )
    for m in ran:
        first = next(iter(m["private"].values()))
        seconds = (f"{m['private'][link]['online_seconds']:.3f} s" if link in m["private"] else "-" for link in links)
        lines.append(
            f"{m['network']:<17}{_name(m):<20}{m['relus']:>9,}  {m['accuracy']:>8.2f}  "
            f"{first['online_bytes'] / 1e6:>6.2f} MB  {first['round_trips']:>11}"
            + "".join(f"  {s:>18}" for s in seconds)
        )
    return lines


def _name(m: Json) -> str:
    """Return the method, and with it the number of layers that it was limited to."""
    limit = "" if m["most_layers"] is None else f"-l{m['most_layers']}"
    return str(m["method"]) + limit + ("-avg" if m.get("average_pooling") else "")


def _interval(m: Json) -> str:
    return f"{m['accuracy']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"


def _cell(m: Json | None) -> str:
    return "-" if m is None else f"{_interval(m)} @{m['relus']:,}"


def _pruned(row: Json) -> str:
    accuracies = f"{row['baseline']:.2f} -> {row['pruned']:.2f} ({row['change']:+.2f})"
    return f"{accuracies}, {row['macs'] / 1e6:.1f}M, {row['relus']:,}"


def _value(value: Any) -> str:
    if value is None:
        return "-"
    return " to ".join(f"{part:.3g}" for part in (value if isinstance(value, list) else [value]))
