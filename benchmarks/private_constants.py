"""The constants of `deepreduce estimate` for our engine: what a hash, a label, a ciphertext or a byte takes here.

Beside these there is what takes time whatever the size: `layer_seconds`, `round_seconds` and `inference_seconds`.

Every constant is the median over some repetitions of the engine's own functions, on one core and one party at a time,
at the sizes that a ResNet18 at 32x32 has. It takes about a minute; run it on a quiet machine.

    python benchmarks/private_constants.py --write
    python benchmarks/private_constants.py --write --only fixed

The result is a data file in results/, named by processor and date; with --write also the packaged file, which the
estimates of everybody who installs this release use. With --only some of the constants are measured anew, on the same
kind of machine, and all others stay as they are in the packaged file: the new ones then say when they were measured
and at which load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from machine import public, results_path
from private_constants_groups import GROUPS

import deepreduce
from deepreduce.private.ring import set_threads

PACKAGED = Path(__file__).resolve().parent.parent / "src/deepreduce/private/estimate/constants/ours.json"

NOT_ACCOUNTED = [
    "greetings and the naming of bundles: some hundred bytes, and a round trip before each phase",
    "TCP's slow start, TLS records (0.13 %) and its handshake, packet headers",
    "reading the bundle from the disk before the image is sent",
    "transforming the weights, which the server does once per model",
    "waiting for a core that others want, and waking up for a message: a round of circuits with next to nothing to "
    "compute took 1 to 2 ms beside two other programs on two cores",
]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="replace the packaged constants")
    parser.add_argument("--only", choices=GROUPS, nargs="+", help="measure these again; the others stay as packaged")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_threads(1)
    environment = deepreduce.environment(command=["python", *map(public, sys.argv)])
    before: dict[str, Any] = json.loads(PACKAGED.read_text(encoding="utf-8")) if options.only else {}
    hardware = f"one core of {environment['processor']}, {environment['kernels'].get('garbling')} kernel"
    if before and before["hardware"] != hardware:
        parser.error(f"--only adds to constants of {before['hardware']}, and this is {hardware}: measure all of them")
    rows: dict[str, dict[str, Any]] = before.get("constants", {})
    for group in options.only or GROUPS:
        for name, (unit, how, values) in GROUPS[group](options.repeats).items():
            rows[name] = row(unit, how, values)
            if before:
                rows[name] |= {"date": environment["date"], "load_average": load(), "command": environment["command"]}
            print(f"{name:40} {rows[name]['value']:10.3g} {unit}", flush=True)
    content = {
        "protocol": "ours",
        "title": "DeepReduce",
        "source": "layout of the program, exact; seconds from benchmarks/private_constants.py",
        "hardware": hardware,
        "date": environment["date"],
        "load_average": load(),
        "command": environment["command"],
        **{name: before[name] for name in ("date", "load_average", "command") if before},
        "constants": rows,
        "not_accounted": NOT_ACCOUNTED,
    }
    path = results_path(options.results, "private_constants", environment["processor"], date=environment["date"])
    anew = {"measured_anew": options.only} if before else {}  # the environment is that of these
    path.write_text(json.dumps({**content, **anew, "environment": environment}, indent=1) + "\n", encoding="utf-8")
    print(path)
    if options.write:
        PACKAGED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(PACKAGED)
    return 0


def row(unit: str, how: str, values: list[float]) -> dict[str, Any]:
    """Return the entry of a constant: the median of its samples, and how far they lie apart."""
    value, lowest, highest = (float(f"{x:.4g}") for x in (statistics.median(values), min(values), max(values)))
    return {"value": value, "unit": unit, "how": how, "lowest": lowest, "highest": highest, "n": len(values)}


def load() -> str:
    """Return the load averages over 1, 5 and 15 minutes."""
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    raise SystemExit(main())
