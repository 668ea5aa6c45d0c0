"""From finished runs and the published figures to tables, a results file and a plot; used by `reproduce.py`."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from pathlib import Path
from typing import Any

from machine import device_of, public, results_path
from reproduction_private import join_private
from reproduction_text import as_text
from scipy import stats

from deepreduce._files import read_json, write_json
from deepreduce.errors import RunError, problem

Json = dict[str, Any]

PUBLISHED = Path(__file__).with_name("published.json")
OURS = ("deepreduce-masks", "deepreduce-narrow")
PAPER = ("published", "deepreduce")
"""Methods whose candidates are DeepReDuce's own."""

_OF_DATA = ("name", "fingerprint", "train", "validation", "test", "notes")
_OF_ENTRY = (
    "id", "label", "recipe", "relus", "macs", "status", "validation", "test", "epochs", "search_epochs", "seconds",
)  # fmt: skip

_TOLERANCE = 1.05  # where only the bracket of a published budget is known
_LATENCY_ACCURACY, _CLASSES = 65, 100  # of the claim of private latency: percent, and of how many classes


def load_published(path: Path = PUBLISHED) -> Json:
    """Read the published figures.

    Raises:
        RunError: if the file is not of this format.
    """
    content = read_json(path)
    if (content.get("format"), content.get("version")) != ("deepreduce.published", 1):
        raise RunError(
            problem("published figures have their format", got=content.get("format"), remedy="restore it", where=path)
        )
    return content


def load_results(path: Path) -> Json:
    """Read a results file of an earlier table.

    Raises:
        RunError: if it is none, or was written before results files held their fronts.
    """
    content = read_json(path)
    fronts, times = content.get("fronts"), content.get("epoch_times")
    needed = {"network", "data", "settings", "teacher", "candidates", "environments"}
    whole = isinstance(fronts, list) and all(isinstance(front, dict) and needed <= set(front) for front in fronts)
    if not (whole and isinstance(times, list)):
        raise RunError(
            problem(
                "a table is made of run folders and results files with their fronts",
                got="a file without fronts",
                remedy="name the folder of `reproduce.py run`, or a file that `reproduce.py table` has written",
                where=path,
            )
        )
    return content


def reproduction(
    published: Json, fronts: list[Json], times: list[Json], private: Json | None = None
) -> tuple[Json, str]:
    """Put published and measured figures side by side.

    Args:
        published: content of `published.json`.
        fronts: content of the `front.json` of every network and method, and the `fronts` of earlier results files.
        times: what `reproduce.py` measured of epochs.
        private: what networks of these fronts cost privately, as `load_private` gives it: figures join the network of
            the same label and number of ReLUs, and of the same full network where that is known.

    Returns:
        The content of the results file, and the tables as text.

    Raises:
        RunError: if there is no front, or private figures belong to none of the networks, or to several.
    """
    if not fronts:
        raise RunError(problem("there must be finished runs", got="no fronts", remedy="run `reproduce.py run` first"))
    fronts = joined(fronts)
    rows = [_row(row, fronts) for row in published["rows"]]
    comparison = [_compared(row, fronts) for row in published["comparison"]]
    shown = [(front, entry) for front in fronts for entry in (front["teacher"], *front["candidates"])]
    trained = {  # a teacher is shown once for each run, not for each method
        (_run_of(front), "" if entry["id"] == "teacher" else front["settings"]["method"], entry["id"]): measured
        for front, entry in shown
        if (measured := _measured(front, entry)) is not None
    }
    join_private(list(trained.values()), [] if private is None else private["cases"])
    claims = [_claim(claim, fronts, list(trained.values())) for claim in published["claims"]]
    seconds = {(run, name): measured["seconds"] for (run, _, name), measured in trained.items()}
    ran = list({str(environment): environment for front in fronts for environment in front["environments"]}.values())
    content = {
        "environment": max(ran, key=lambda environment: str(environment["date"])),
        "environments": ran,
        "commands": sorted({environment["command"] for environment in ran}),
        "data": fronts[0]["data"],
        "networks": list({str(front["network"]): front["network"] for front in fronts}.values()),
        "seconds": sum(seconds.values()),
        "comparable_with_the_papers": all(map(_full_size, fronts)),
        "sources": published["sources"],
        "rows": rows,
        "comparison": comparison,
        "claims": claims,
        "versus": versus(fronts),
        "private": private,
        "measured": list(trained.values()),
        "epoch_times": list({str(time): time for time in times}.values()),
        "fronts": fronts,
    }
    return content, as_text(content)


def joined(fronts: list[Json]) -> list[Json]:
    """Make one front of those of the same network, images, teacher and method, and leave out what no table needs.

    So a table can be made from runs on several machines, of which only the results files are left.

    Args:
        fronts: of run folders, or of results files. Of one network several times, the one of most seeds, then of most
            epochs, then the later one stays; one that failed only where there is no other.

    Returns:
        Fronts with `environments`, all those that had a part in it, in place of `environment`. Their settings are
        those of the last, with the budgets of all.
    """
    found: dict[str, Json] = {}
    for front in fronts:
        ran = front["environments"] if "environments" in front else [_public_environment(front["environment"])]
        own = {
            "network": front["network"],
            "data": {key: front["data"][key] for key in _OF_DATA},
            "settings": front["settings"],
            "teacher": _entry(front["teacher"]),
            "candidates": [_entry(entry) for entry in front["candidates"]],
            "environments": ran,
        }
        key = str((_run_of(own), own["settings"]["method"]))
        if key in found:
            other = found[key]
            own["settings"] = {**own["settings"], "budgets": list(dict.fromkeys(_budgets(other) + _budgets(own)))}
            if own["settings"].get("most_layers") != other["settings"].get("most_layers"):
                own["settings"]["most_layers"] = None  # each network's recipe says its own
            if own["settings"].get("keep_max_pooling") != other["settings"].get("keep_max_pooling"):
                own["settings"]["keep_max_pooling"] = None
            own["candidates"] = _best_of(other["candidates"] + own["candidates"])
            own["environments"] = list({str(each): each for each in other["environments"] + ran}.values())
        found[key] = own
    return list(found.values())


def _best_of(entries: list[Json]) -> list[Json]:
    """Return each network once; masks of one order are one network, whichever ReLUs they keep."""
    found: dict[str, Json] = {}
    for entry in entries:
        key = entry["label"] if "masks" in (entry["recipe"] or {}) else entry["id"]
        if key not in found or _worth(entry) >= _worth(found[key]):
            found[key] = entry
    return list(found.values())


def _worth(entry: Json) -> tuple[bool, int, int]:
    tested = entry["test"] or {"runs": []}
    return entry["status"] == "done", len(tested["runs"]), entry["epochs"]


def _entry(entry: Json) -> Json:
    return {key: entry[key] for key in _OF_ENTRY}


def _public_environment(environment: Json) -> Json:
    return {**environment, "command": public(environment["command"])}


def _full_size(front: Json) -> bool:
    return front["network"]["width"] == 1 and not any("subset" in note for note in front["data"]["notes"])


def same_data(name: str, published: str) -> bool:
    """Tell whether a data set of this name is one of the published figures: a folder's name, or OWNER/NAME."""
    plain = [re.sub("[^a-z0-9]", "", each.rsplit("/", 1)[-1].lower()) for each in (name, published)]
    return plain[0] == plain[1]


def _of(fronts: list[Json], data: str, network: str, methods: tuple[str, ...]) -> list[tuple[Json, Json]]:
    """Return the trained entries of these methods, each with its front."""
    return [
        (front, entry)
        for front in fronts
        if same_data(front["data"]["name"], data)
        and front["network"]["name"] == network
        and front["settings"]["method"] in methods
        for entry in front["candidates"]
        if entry["status"] == "done"
    ]


def _best(found: list[tuple[Json, Json]], relus: float) -> Json | None:
    """Return the entry that the held-out images choose among those with at most so many ReLUs at full width."""
    fitting = [(front, entry) for front, entry in found if entry["relus"] <= relus * front["network"]["width"]]
    if not fitting:
        return None
    return _measured(*max(fitting, key=lambda pair: pair[1]["validation"]["accuracy"]))


def versus(fronts: list[Json]) -> list[Json]:
    """Hold our methods against every other one of the same run, network by network of the same size.

    Of each method's networks those are compared whose number of ReLUs was a budget of ours, give or take 3 %; ours is
    the largest one with no more ReLUs. Networks in a limited number of layers are left out.

    Returns:
        For each base network, method of ours and other method (`ours`, `method`): `rows[]{relus, our_relus, ours,
        other}` (test accuracies in %, one per seed), `difference` (ours minus theirs, in points, mean over rows and
        seeds), `low` and `high` (its 95 % interval, by Student's t over the seeds' means; null for one seed), and
        `seeds`. Masks and the distilling teacher are the same for all seeds: the interval covers the chance in
        training the networks, not that in finding the masks, nor the choice of test images.
    """
    found = []
    for name, front in itertools.product(OURS, fronts):
        own = next((f for f in fronts if f["settings"]["method"] == name and _same_run(f, front)), None)
        if own is None or front["settings"]["method"] in OURS:
            continue
        rows = []
        for theirs in sorted(filter(_tested, front["candidates"]), key=lambda e: -e["relus"]):
            relus = theirs["relus"]
            same = [e for e in filter(_tested, own["candidates"]) if _averages(e) is _averages(theirs)]
            fitting = [e for e in same if not _limited(e) and e["relus"] <= relus]
            if fitting and any(0.97 * relus <= budget <= 1.03 * relus for budget in _unlimited_budgets(own)):
                mine = max(fitting, key=lambda e: e["relus"])
                ours, other = ([100 * accuracy for accuracy in entry["test"]["runs"]] for entry in (mine, theirs))
                rows.append({"relus": relus, "our_relus": mine["relus"], "ours": ours, "other": other})
        if not rows:
            continue
        seeds = min(len(row[side]) for row in rows for side in ("ours", "other"))
        by_seed = [statistics.fmean(row["ours"][seed] - row["other"][seed] for row in rows) for seed in range(seeds)]
        mean, half = statistics.fmean(by_seed), None
        if seeds > 1:
            half = float(stats.t.ppf(0.975, seeds - 1)) * statistics.stdev(by_seed) / math.sqrt(seeds)
        found.append(
            {
                "network": front["network"]["name"],
                "ours": name,
                "method": front["settings"]["method"],
                "rows": rows,
                "difference": mean,
                "low": None if half is None else mean - half,
                "high": None if half is None else mean + half,
                "seeds": seeds,
            }
        )
    return found


def _budgets(front: Json) -> list[int]:
    """Return the budgets that a front's networks were made for."""
    settings = front["settings"]
    return list(settings["budgets"]) or ([settings["budget"]] if settings["budget"] else [])


def _run_of(front: Json) -> str:
    """Return what fronts with the same network, data and teacher have in common."""
    teacher = [front["teacher"][key] for key in ("relus", "epochs", "validation")]
    return str((front["network"], front["data"]["fingerprint"], teacher))


def _same_run(front: Json, other: Json) -> bool:
    return _run_of(front) == _run_of(other)


def _tested(entry: Json) -> bool:
    return entry["status"] == "done" and entry["test"] is not None


def _limited(entry: Json) -> bool:
    """Tell whether masks were to lie in a limited number of layers."""
    return "most_layers" in (entry["recipe"] or {}).get("masks", {})


def _averages(entry: Json) -> bool:
    """Tell whether average pooling takes the place of max pooling."""
    return bool((entry["recipe"] or {}).get("average_pooling", False))


def _unlimited_budgets(front: Json) -> list[int]:
    """Return the budgets of a front but for those that a network in a limited number of layers alone was made for."""
    budgets: dict[bool, set[int]] = {True: set(), False: set()}
    for entry in front["candidates"]:
        if "masks" in (entry["recipe"] or {}):
            budgets[_limited(entry)].add(entry["recipe"]["masks"]["budget"])
    return [budget for budget in _budgets(front) if budget not in budgets[True] - budgets[False]]


def _measured(front: Json, entry: Json) -> Json | None:
    """Return what the tables show of one entry, accuracies in percent."""
    if entry["status"] != "done":
        return None
    split = "test" if entry["test"] else "validation"
    value = entry[split]
    return {
        "network": front["network"]["name"],
        "classes": front["network"]["classes"],
        "data": front["data"]["name"],
        "width": front["network"]["width"],
        "method": "teacher" if entry["id"] == "teacher" else front["settings"]["method"],
        "label": entry["label"],
        "most_layers": (entry["recipe"] or {}).get("masks", {}).get("most_layers"),
        "average_pooling": _averages(entry),
        "relus": entry["relus"],
        "macs": entry["macs"],
        "split": split,
        "accuracy": 100 * value["accuracy"],
        "low": 100 * value["low"],
        "high": 100 * value["high"],
        "n": value["n"],
        "seeds": len(value["runs"]),
        "sd": None if value["sd"] is None else 100 * value["sd"],
        "validation": 100 * entry["validation"]["accuracy"],
        "epochs": entry["epochs"],
        "search_epochs": entry["search_epochs"],
        "seconds": entry["seconds"],
    }


def _row(row: Json, fronts: list[Json]) -> Json:
    """Return one row of sections 2 and 3 with what was measured for it here."""
    methods = PAPER if row["method"] == "deepreduce" else (row["method"],)
    found = _of(fronts, row["data"], row["network"], methods)
    limit = row["relus"] * (1 if row["exact"] else _TOLERANCE)
    if "candidate" in row:
        found = [(front, entry) for front, entry in found if _is(entry["recipe"], row["candidate"])]
    same, ours = _best(found, limit), _best(_of(fronts, row["data"], row["network"], OURS), limit)
    gap = None if ours is None or row["accuracy"] is None else ours["accuracy"] - row["accuracy"]
    return {**row, "here": same, "ours": ours, "ours_minus_paper": gap}


def _is(recipe: Json, candidate: Json) -> bool:
    kept = {name: recipe[name] for name in ("keep", "thin", "alpha", "rho")}
    return (
        kept == candidate
        and not recipe["drop"]
        and not {"masks", "beta", "trim", "bypass", "collapse", "average_pooling"} & set(recipe)
    )


def _compared(row: Json, fronts: list[Json]) -> Json:
    """Return one row of the comparison with channel pruning: baseline, pruned accuracy, change, MACs, ReLUs."""
    methods = PAPER if row["method"] == "deepreduce" else (row["method"],)
    found = _of(fronts, row["data"], "resnet18", methods)

    def measured(front: Json, entry: Json) -> Json:
        teacher, pruned = _measured(front, front["teacher"]), _measured(front, entry)
        assert teacher is not None and pruned is not None
        return {**pruned, "baseline": teacher["accuracy"], "change": pruned["accuracy"] - teacher["accuracy"]}

    fitting = [(f, e) for f, e in found if e["relus"] <= row["relus"] * f["network"]["width"]]
    here = measured(*max(fitting, key=lambda pair: pair[1]["validation"]["accuracy"])) if fitting else None
    mine = [(f, e) for f, e in _of(fronts, row["data"], "resnet18", OURS)]
    mine = [(f, e) for f, e in mine if e["relus"] <= row["relus"] * f["network"]["width"]]
    ours = measured(*max(mine, key=lambda pair: pair[1]["validation"]["accuracy"])) if mine else None
    return {**row, "here": here, "ours": ours}


def _claim(claim: Json, fronts: list[Json], measured: list[Json]) -> Json:
    """Return one of the paper's claims with what these runs say about it, or why they say nothing."""
    if claim["id"] == "latency":
        return _latency(claim, measured)
    network = "mobilenet_v1" if claim["id"] == "mobilenet" else "resnet18"
    if claim["id"] in ("no-loss", "mobilenet"):
        found = _of(fronts, claim["data"], network, (*PAPER, *OURS))
        kept = [
            (entry["relus"], front["teacher"]["relus"] / entry["relus"], front, entry)
            for front, entry in found
            if entry["validation"]["accuracy"] >= front["teacher"]["validation"]["accuracy"]
        ]
        if not found:
            return {**claim, "here": None, "reason": f"no run of {network} on {claim['data']}"}
        if not kept:
            return {**claim, "here": None, "reason": "no network reaches its teacher on held-out images"}
        _, factor, front, entry = min(kept, key=lambda item: item[0])
        return {
            **claim,
            "here": factor,
            "network": _measured(front, entry),
            "teacher": _measured(front, front["teacher"]),
        }
    if claim["id"] in ("culling", "thinning", "reshaping"):
        factors = sorted(_factors(claim["id"], _of(fronts, claim["data"], network, PAPER)))
        return {**claim, "here": [factors[0], factors[-1]] if factors else None}
    return {**claim, "here": None, "reason": "the curve of 2021 is not in our sources"}


def _latency(claim: Json, measured: list[Json]) -> Json:
    """Return the claim with the fastest network, over 1 Gbit/s, of as much accuracy on the held-out images."""
    fitting = [
        one
        for one in measured
        if (one["data"], one["classes"]) == (claim["data"], _CLASSES)
        and one["validation"] >= _LATENCY_ACCURACY
        and "lan" in one["private"]
    ]
    if not fitting:
        reason = f"no network with {_LATENCY_ACCURACY} % of all {_CLASSES} classes right was run privately"
        return {**claim, "here": None, "reason": reason}
    best = min(fitting, key=lambda one: float(one["private"]["lan"]["online_seconds"]))
    reason = f"1 Gbit/s, {best['relus']:,} ReLUs, {best['accuracy']:.2f} % of the {best['split']} images"
    return {**claim, "here": best["private"]["lan"]["online_seconds"], "reason": reason, "network": best}


def _factors(step: str, found: list[tuple[Json, Json]]) -> list[float]:
    """Return by how much one step of the method divides the ReLUs, for every network that was trained for it."""
    whole = {"thin": False, "alpha": 1.0, "rho": 1.0}
    before = {"culling": None, "thinning": whole, "reshaping": {**whole, "thin": True}}[step]
    factors = []
    for front, entry in found:
        recipe = entry["recipe"]
        shape = {name: recipe[name] for name in whole}
        if step == "culling" and shape == whole:
            factors.append(front["teacher"]["relus"] / entry["relus"])
        reached = shape == {**whole, "thin": True} if step == "thinning" else shape["thin"] and shape != before
        if step == "culling" or not reached:
            continue
        factors += [
            other["relus"] / entry["relus"]
            for _, other in found
            if other["recipe"]["keep"] == recipe["keep"] and before == {name: other["recipe"][name] for name in whole}
        ]
    return factors


def write_results(content: Json, folder: Path, name: str, *, plot: bool = True) -> list[Path]:
    """Write the results file, named by device and date, and the plot beside it where matplotlib is installed."""
    environment = content["environment"]
    path = results_path(folder, name, device_of(environment), date=environment["date"])
    write_json(path, {"benchmark": name, **content})
    if not plot:
        return [path]
    try:
        from reproduction_plot import draw
    except ImportError:
        return [path]
    return [path, *draw(content, path.with_suffix(""))]
