"""The table of private inferences that were really run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from deepreduce.report import _words as words
from deepreduce.report.tables import _table


def private_table(runs: Mapping[str, dict[str, Any]]) -> Table:
    """Return what private inference took, offline and online apart: a row for each network.

    Args:
        runs: by network what was measured: `relus`, `images`, `equal_to_twin`, `offline` {seconds, bytes,
            stored_bytes} and `online` {seconds, bytes, round_trips}, all per image.
    """
    table = _table(
        "Private inference: two processes over TLS on this machine",
        [
            "Per image. Offline: before the image is known. Online: from the image to its class.",
            "As in clear: images with the same class as the program on plain integers.",
        ],
    )
    table.add_column("Network", min_width=10, overflow="fold")
    for name in ("ReLUs", "Offline", "", "Online", " ", "Round trips", "As in clear"):
        table.add_column(name, justify="right", no_wrap=name != "Round trips" and name != "As in clear")
    for name, run in runs.items():
        offline, online = run["offline"], run["online"]
        table.add_row(
            words.clean(name),
            words.count(run["relus"]),
            words.duration(offline["seconds"]),
            words.size(offline["bytes"]),
            words.duration(online["seconds"]),
            words.size(online["bytes"]),
            words.count(online["round_trips"]),
            f"{run['equal_to_twin']} of {run['images']}",
        )
    return table
