"""Numbers and names as a person reads them, the same in the terminal, on the page and in the figures."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

UNKNOWN = "-"
LATENCY = "estimated from DELPHI's logs, without network time"


def clean(text: object) -> str:
    """Return `text` on one line, without characters that could steer a terminal or break a file.

    Control and format characters (escape sequences, direction overrides) and lone surrogates become U+FFFD; tabs and
    line breaks become spaces. Names come from files that others may have written.
    """
    kept = []
    for letter in str(text):
        if letter in "\t\n\r":
            kept.append(" ")
        elif unicodedata.category(letter) in ("Cc", "Cf", "Cs"):
            kept.append("\ufffd")
        else:
            kept.append(letter)
    return "".join(kept)


def shorten(text: object, longest: int) -> str:
    """Return `text`, cleaned and cut to `longest` characters with an ellipsis."""
    line = clean(text)
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "\u2026"


def number(value: object) -> float | None:
    """Return `value` as a finite float, or None where it is not one (null, NaN, a word)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def count(value: object) -> str:
    """Return a count with thousands separators: 114,688."""
    known = number(value)
    return UNKNOWN if known is None else f"{known:,.0f}"


def many(value: object, noun: str) -> str:
    """Return a number of things: `1 image`, `5,000 images`."""
    return f"{count(value)} {noun}" + ("" if number(value) == 1 else "s")


def epochs(value: object) -> str:
    """Return a number of epochs: `1 epoch`, `200 epochs`."""
    return many(value, "epoch")


def macs(value: object) -> str:
    """Return multiply-accumulate operations in millions: 555.5 M; below 0.1 M in thousands: 84.2 K."""
    known = number(value)
    if known is None:
        return UNKNOWN
    if 0 < known < 1e5:
        return f"{known / 1e3:.1f} K"
    return f"{known / 1e6:,.1f} M"


def percent(fraction: object, digits: int = 2) -> str:
    """Return a fraction in [0, 1] as a percentage without its sign: 0.7472 gives 74.72."""
    known = number(fraction)
    return UNKNOWN if known is None else f"{100 * known:.{digits}f}"


def points(value: object, digits: int = 2) -> str:
    """Return a difference in percentage points with its sign: +0.26, -1.30."""
    known = number(value)
    if known is None:
        return UNKNOWN
    text = f"{known:+.{digits}f}"
    return text.replace("-", "+") if float(text) == 0 else text


def factor(before: object, after: object) -> str:
    """Return how many times fewer: factor(557056, 114688) gives 4.9x; 'all' where none is left."""
    first, second = number(before), number(after)
    if first is None or second is None:
        return UNKNOWN
    if second == 0:
        return "all" if first > 0 else UNKNOWN
    ratio = first / second
    return f"{ratio:,.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x"


def duration(seconds: object) -> str:
    """Return a duration for people: 2.8 ms, 0.45 s, 12.6 s, 7 min, 3.4 h."""
    known = number(seconds)
    if known is None:
        return UNKNOWN
    if known < 0.0995:
        return f"{1000 * known:.3g} ms"
    if known < 9.995:
        return f"{known:.2f} s"
    if known < 99.95:
        return f"{known:.1f} s"
    if known < 99.5 * 60:
        return f"{known / 60:.0f} min"
    return f"{known / 3600:,.1f} h"


def size(value: object) -> str:
    """Return a number of bytes for people, in powers of ten: 512 B, 8.19 KB, 186 MB, 1.25 GB."""
    known = number(value)
    if known is None:
        return UNKNOWN
    unit = 0
    while known >= 999.5 and unit < 4:
        known, unit = known / 1000, unit + 1
    digits = 0 if unit == 0 or known >= 99.95 else 1 if known >= 9.995 else 2
    return f"{known:.{digits}f} {('B', 'KB', 'MB', 'GB', 'TB')[unit]}"


def resolution(value: object) -> str:
    """Return a feature-map resolution as 32x32, from [32, 32], 32, or '32x32'."""
    if isinstance(value, list | tuple):
        return "x".join(clean(side) for side in value)
    if number(value) is not None:
        return f"{value}x{value}"
    return UNKNOWN if value is None else clean(value)


def critical(measured: int, most: list[str], least: list[str]) -> str:
    """Say which stages are most and least critical, of so many that were measured."""
    if measured < 2:
        return "Criticality was not measured for two stages or more."
    if not most:
        return "All stages measured the same: none is more critical than another."
    ends = (", ".join(map(clean, stages)) for stages in (most, least))
    return "Most critical: {}. Least critical: {}.".format(*ends)


def seeds(measured: dict[str, Any] | None) -> str:
    """Return mean and standard deviation over seeds, 'mean 74.60 ± 0.21, 3 seeds'; empty for fewer than two runs."""
    runs = (measured or {}).get("runs") or []
    if measured is None or len(runs) < 2:
        return ""
    spread = number(measured.get("sd"))
    mean = percent(measured.get("mean"))
    return f"mean {mean}{'' if spread is None else f' ± {100 * spread:.2f}'}, {len(runs)} seeds"
