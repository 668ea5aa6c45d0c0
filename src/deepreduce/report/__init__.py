"""Tables, plots and the HTML page: functions of a front dictionary (`front.json`) and of nothing else.

Importing this package costs next to nothing: plotly, jinja2, matplotlib and rich are loaded where they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepreduce.report.costs import estimate_notes, estimate_table
    from deepreduce.report.figures import write_figures
    from deepreduce.report.front import Headline, check_front, headline
    from deepreduce.report.page import write_page
    from deepreduce.report.private import private_table
    from deepreduce.report.tables import criticality_table, front_table, plan_table, profile_table

_HOMES = {
    "Headline": "front",
    "check_front": "front",
    "criticality_table": "tables",
    "estimate_notes": "costs",
    "estimate_table": "costs",
    "front_table": "tables",
    "headline": "front",
    "plan_table": "tables",
    "private_table": "private",
    "profile_table": "tables",
    "write_figures": "figures",
    "write_page": "page",
}

__all__ = [
    "Headline",
    "check_front",
    "criticality_table",
    "estimate_notes",
    "estimate_table",
    "front_table",
    "headline",
    "plan_table",
    "private_table",
    "profile_table",
    "write_figures",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
