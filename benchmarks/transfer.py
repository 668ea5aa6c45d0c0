"""Oblivious transfer: how many per second and core, and at how many bytes?

Base transfers: both parties' seconds for 128. Extension: for every backend and field size, each party's correlated
transfers per second on one thread, and on all cores; bytes per transfer as encoded. One process plays both parties,
one after the other. Transfers per second of processor time say what one core does even on a busy machine; those per
second of the clock what this one did, with the load average beside them.

    python benchmarks/transfer.py

The result is a data file in results/, named by processor and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import processor_name, results_path, summary

import deepreduce
from deepreduce._cores import available_cores
from deepreduce.private import transfer


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    parser.add_argument("--count", type=int, default=1 << 20, help="transfers per batch")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()

    cores = available_cores()
    rows = []
    for backend in transfer.available_backends():
        for field_bits in (1, 2, 4, 8):
            for threads in sorted({1, cores}):
                row = measure(backend, field_bits, threads, options.count, options.repeats)
                rows.append(row)
                print(
                    f"{row['variant']:>16}  {backend:6}  {threads} thread(s)"
                    f"  client {row['client_per_core_second']['median'] / 1e6:6.1f}"
                    f" ({row['client_per_second']['median'] / 1e6:.1f})"
                    f"  server {row['server_per_core_second']['median'] / 1e6:6.1f}"
                    f" ({row['server_per_second']['median'] / 1e6:.1f}) M per core second (per second)"
                    f"  {row['bytes_per_transfer']:.2f} bytes",
                    flush=True,
                )
    base = measure_base(options.repeats)
    print(f"128 base transfers: client {base['client_seconds']['median']:.4f} s", end=", ")
    print(f"server {base['server_seconds']['median']:.4f} s")

    processor = processor_name()
    result = {
        "what": "oblivious transfer: 128 base transfers, and correlated transfers per second, party, and core",
        "command": f"python benchmarks/transfer.py --count {options.count} --repeats {options.repeats}",
        "processor": processor,
        "cores": cores,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "deepreduce": deepreduce.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "transfers_per_batch": options.count,
        "base": base,
        "extension": rows,
    }
    path = results_path(options.results, "transfer", processor, date=str(result["date"]))
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def measure(backend: str, field_bits: int, threads: int, count: int, repeats: int) -> dict[str, Any]:
    """Return the speed of both parties over `repeats` batches, after one batch that does not count."""
    session = transfer.new_session()
    at_client, offer = transfer.offer_setup(session, field_bits)
    at_server, chosen = transfer.choose_setup(session, transfer.new_delta(), offer, field_bits)
    client, sums = transfer.plant_setup(at_client, chosen, backend=backend)
    server = transfer.finish_setup(at_server, sums, backend=backend)
    bits = np.frombuffer(os.urandom(count), dtype=np.uint8) & 1
    times = []
    for _ in range(repeats + 1):
        begun = now()
        client, message, labels = transfer.extend_receiver(client, bits, backend=backend, threads=threads)
        middle = now()
        server, zeros = transfer.extend_sender(server, message, count, backend=backend, threads=threads)
        times.append(np.concatenate([middle - begun, now() - middle]))
    speeds = count / np.array(times[1:])
    if not np.array_equal(labels, zeros ^ bits[:, None] * server.delta):
        raise SystemExit("the transfers are wrong")
    return {
        "backend": backend,
        "variant": "IKNP" if field_bits == 1 else f"SoftSpoken k = {field_bits}",
        "field_bits": field_bits,
        "threads": threads,
        "client_per_second": summary(speeds[:, 0].tolist()),
        "client_per_core_second": summary(speeds[:, 1].tolist()),
        "server_per_second": summary(speeds[:, 2].tolist()),
        "server_per_core_second": summary(speeds[:, 3].tolist()),
        "bytes_per_transfer": len(message.encode()) / count,
        "bytes_of_set_up": sum(len(one.encode()) for one in (offer, chosen, sums)),
    }


def measure_base(repeats: int) -> dict[str, Any]:
    """Return both parties' seconds for the 128 base transfers."""
    client, server = [], []
    bits = np.frombuffer(os.urandom(128), dtype=np.uint8) & 1
    for _ in range(repeats):
        session = transfer.new_session()
        first, (sender, offer) = timed(transfer.offer_base, session)
        second, (receiver, choices) = timed(transfer.choose_base, session, bits, offer)
        third, keys = timed(transfer.finish_base_sender, sender, choices)
        fourth, chosen = timed(transfer.finish_base_receiver, receiver)
        if not np.array_equal(keys[np.arange(128), bits], chosen):
            raise SystemExit("the base transfers are wrong")
        client.append(first + third)
        server.append(second + fourth)
    return {"client_seconds": summary(client), "server_seconds": summary(server), "bytes": 72 + 40 + 32 * 128}


def now() -> np.ndarray:
    """Return the clock and this process's processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return how many seconds the call took, and what it returned."""
    begun = time.perf_counter()
    outcome = function(*arguments)
    return time.perf_counter() - begun, outcome


if __name__ == "__main__":
    raise SystemExit(main())
