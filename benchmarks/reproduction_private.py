"""What networks cost privately, from results files of `private.py`, beside what was trained; used by `reproduce.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepreduce._files import read_json
from deepreduce.errors import RunError, problem

Json = dict[str, Any]

LINKS = {"loopback": "no limit", "lan": "1 Gbit/s", "wan": "100 Mbit/s, 40 ms"}
"""The links of `private.py`, and what a person reads."""


def load_private(path: Path) -> Json:
    """Read what a table needs of a results file of `private.py`.

    Returns:
        `environments`, and `cases[]{label, relus, base, weights_sha256, links{online_seconds, online_bytes,
        round_trips}}`; `base` is the full network, null in files that do not say it.

    Raises:
        RunError: if it is none.
    """
    content = read_json(path)
    try:
        cases = [
            {
                "label": "teacher" if case["network"]["candidate"] == "full" else case["network"]["candidate"],
                "relus": case["network"]["relus"],
                "base": case["network"].get("base"),
                "weights_sha256": case["network"]["weights_sha256"],
                "links": {
                    link: {
                        "online_seconds": case[link]["online_seconds"]["median"],
                        "online_bytes": case[link]["online_sent_bytes"] + case[link]["online_received_bytes"],
                        "round_trips": case[link]["online_round_trips"],
                    }
                    for link in LINKS
                    if link in case
                },
            }
            for case in content["cases"].values()
        ]
        return {"environments": [content["environment"]], "cases": cases}
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            problem(
                "what networks cost privately comes from private.py",
                got=f"another file ({type(error).__name__}: {error})",
                remedy="name a results file of `private.py --saved`",
                where=path,
            )
        ) from error


def all_private(several: list[Json]) -> Json | None:
    """Make one of what `load_private` gave for several files, None of none."""
    if not several:
        return None
    return {key: [item for one in several for item in one[key]] for key in ("environments", "cases")}


def join_private(measured: list[Json], cases: list[Json]) -> None:
    """Put beside every network what it costs in private, by link: nothing for one that was not run.

    Raises:
        RunError: if that is not certain: labels and numbers of ReLUs stand for networks within one run alone.
    """
    weights: dict[int, str] = {}
    for one in measured:
        one["private"] = {}
    for case in cases:
        fitting = [(number, one) for number, one in enumerate(measured) if _fits(case, one)]
        bases = sorted({f"{one['network']} of width {one['width']:g}" for _, one in fitting})
        if len(bases) > 1:
            raise _unsure(f"{case['label']} of {' and '.join(bases)}")
        for number, one in fitting:
            if weights.setdefault(number, case["weights_sha256"]) != case["weights_sha256"]:
                raise _unsure(f"two networks: {case['label']} with {case['relus']:,} ReLUs")
            one["private"] = case["links"]
    if cases and not weights:
        raise _unsure("figures of none of them")


def _fits(case: Json, measured: Json) -> bool:
    """Tell whether a case of `private.py` may be this network."""
    base = case.get("base")  # earlier results files lack it
    own = {"name": measured["network"], "width": measured["width"], "classes": measured["classes"]}
    same = base is None or all(base.get(key) == value for key, value in own.items())
    return same and (case["label"], case["relus"]) == (measured["label"], measured["relus"])


def _unsure(got: str) -> RunError:
    return RunError(
        problem(
            "private figures belong to one network each of one run",
            got=got,
            remedy="make a table of the runs that private.py took its networks from",
            where="--private",
        )
    )
