"""Garbling: AND gates garbled and evaluated per second and core, beside the AES rate of the same minute.

Three circuits: a random one of AND gates alone, the ReLU whose result is a word, and as a yardstick the ReLU that
subtracts the mask inside, as in DELPHI (17 bits enter, 27 leave). Each backend is timed on as many instances as stay in
the second-level cache, the fastest one also on a layer of 65,536 ReLUs. AES is timed in turn with them, as OpenSSL
encrypts 16 KiB in ECB mode, so that a busy machine slows down both; the quotient tells how much of the time is the
cipher. One process plays both parties.

    python benchmarks/garbling.py

The result is a data file in results/, named by processor and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.backends.openssl import backend as openssl
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from machine import processor_name, results_path, summary

import deepreduce
from deepreduce._cores import available_cores
from deepreduce.private import garbling
from deepreduce.private.circuits import FALSE, Builder, Circuit, relu
from deepreduce.private.circuits.arithmetic import add
from deepreduce.private.garbling.backend import NAMES

IN_CACHE = {"and_gates": 64, "relu_word": 512, "relu_bits": 256}
LAYER = 65_536


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()

    circuits = {
        "and_gates": random_ands(),
        "relu_word": relu(17, 27),
        "relu_bits": masked_relu(17, 27),
    }
    rows = []
    for name in NAMES:
        try:
            backend = garbling.get_backend(name)
        except garbling.BackendError as error:
            print(f"{name}: {error}")
            continue
        for label, circuit in circuits.items():
            fastest = not rows or rows[0]["backend"] == name
            sizes = [IN_CACHE[label], LAYER] if fastest and label != "and_gates" else [IN_CACHE[label]]
            for instances in sizes:
                repeats = options.repeats if name != "numpy" and instances < LAYER else max(3, options.repeats // 10)
                row = {"backend": name, "circuit": label, **measure(circuit, instances, backend, repeats)}
                rows.append(row)
                print(
                    f"{name:6} {label:10} {instances:6}"
                    f"  garble {row['garble_ns_per_instance']['median']:8.1f}"
                    f"  labels {row['label_ns_per_instance']['median']:6.1f}"
                    f"  evaluate {row['evaluate_ns_per_instance']['median']:8.1f} ns per instance"
                    f"  = {row['evaluate_ns_per_and']['median']:6.2f} ns per AND gate"
                    f", {row['evaluate_hashes_per_aes']:.2f} of the AES rate",
                    flush=True,
                )
    processor = processor_name()
    result = {
        "what": "half gates per second of one core, and words, by backend, beside OpenSSL's AES",
        "command": f"python benchmarks/garbling.py --repeats {options.repeats}",
        "processor": processor,
        "cores": available_cores(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "openssl": openssl.openssl_version_text(),
        "deepreduce": deepreduce.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "chosen": garbling.describe(),
        "rows": rows,
    }
    path = results_path(options.results, "garbling", processor, date=str(result["date"]))
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def random_ands() -> Circuit:
    """512 AND gates in eight layers on random pairs; no word, almost no XOR."""
    rng = np.random.default_rng(0)
    b = Builder()
    wires = [*b.input("garbler", "x", 32), *b.input("evaluator", "y", 32)]
    for _ in range(8):
        order = [wires[i] for i in rng.permutation(64)]
        wires = [b.and_(x, b.not_(y)) for x, y in zip(order, [*order[1:], order[0]], strict=True)]
    b.output("out", wires)
    return b.build()


def masked_relu(width: int, out_bits: int) -> Circuit:
    """max(x, 0) - mask modulo 2^out_bits as bits, x shared in `width` bits: the evaluator's next mask is an input.

    This is the construction of DELPHI (Mishra et al., USENIX Security 2020, section 4.1.2) and Gazelle. It shows each
    party what `circuits.relu` shows it.
    """
    b = Builder()
    shares = b.input("garbler", "server_share", width), b.input("evaluator", "client_share", width)
    mask = b.input("evaluator", "client_mask", out_bits)
    x = add(b, *shares)
    value = [b.and_(b.not_(x[-1]), bit) for bit in x[: min(width - 1, out_bits)]]
    # not(not(value) + mask). Above the value's bits the carry is an OR with a bit that the evaluator knows: half price.
    difference, carry = [], FALSE
    for bit, m in zip([*value, *[FALSE] * (out_bits - len(value))], mask, strict=True):
        inverted = b.not_(bit)
        difference.append(b.not_(b.xor(b.xor(inverted, carry), m)))
        carry = b.or_(carry, m) if bit == FALSE else b.xor(carry, b.and_(b.xor(inverted, carry), b.xor(m, carry)))
    b.output("out", difference)
    return b.build()


def measure(circuit: Circuit, instances: int, backend: garbling.Backend, repeats: int) -> dict[str, Any]:
    """Time garbling, the server's labels and evaluation, `repeats` times after one that does not count, on one core."""
    rng = np.random.default_rng(1)
    delta = bytes([rng.integers(256) | 1]) + rng.bytes(15)
    values = {
        g.name: rng.integers(0, 2**g.bits, (instances, g.count), dtype=np.uint64) for g in circuit.groups("garbler")
    }
    zero = rng.integers(0, 256, (instances, circuit.wires_of("evaluator"), 16), dtype=np.uint8)
    zero[..., 0] &= 0xFE
    tweak = garbling.Tweak(garbling.new_start(), 0, 0)
    seconds: dict[str, list[float]] = {"garble": [], "label": [], "evaluate": [], "aes": []}
    for _ in range(repeats + 1):
        spent, garbled = timed(
            lambda: garbling.garble(
                circuit, instances=instances, delta=delta, tweak=tweak, evaluator_zero_labels=zero, backend=backend
            )
        )
        seconds["garble"].append(spent)
        seed, tables = garbled.seed, garbled.tables
        spent, labels = timed(
            lambda s=seed: garbling.garbler_labels(circuit, values, seed=s, delta=delta, backend=backend)
        )
        seconds["label"].append(spent)
        spent, _ = timed(
            lambda t=tables, own=labels: garbling.evaluate(
                circuit,
                instances=instances,
                tables=t,
                garbler_labels=own,
                evaluator_labels=zero,
                tweak=tweak,
                backend=backend,
            )
        )
        seconds["evaluate"].append(spent)
        seconds["aes"].append(aes_seconds_per_block())
    per = {name: [1e9 * s / instances for s in values[1:]] for name, values in seconds.items()}
    aes = [1e9 * s for s in seconds["aes"][1:]]
    evaluate_ns = statistics.median(per["evaluate"])
    return {
        "instances": instances,
        "and_gates": circuit.and_gates,
        "hashes": circuit.hashes,
        "table_bytes": circuit.table_bytes,
        "garble_ns_per_instance": summary(per["garble"]),
        "label_ns_per_instance": summary(per["label"]),
        "evaluate_ns_per_instance": summary(per["evaluate"]),
        "garble_ns_per_and": summary([x / circuit.and_gates for x in per["garble"]]),
        "evaluate_ns_per_and": summary([x / circuit.and_gates for x in per["evaluate"]]),
        "aes_ns_per_block": summary(aes),
        "evaluate_hashes_per_aes": circuit.hashes * statistics.median(aes) / evaluate_ns,
    }


def aes_seconds_per_block(blocks: int = 1024, rounds: int = 20) -> float:
    """OpenSSL's AES-128 in ECB mode on 16 KiB, in seconds of processor time per block."""
    encryptor = Cipher(algorithms.AES(bytes(16)), modes.ECB()).encryptor()
    data, out = bytes(16 * blocks), bytearray(16 * blocks + 15)
    begun = time.process_time()
    for _ in range(rounds):
        encryptor.update_into(data, out)
    return (time.process_time() - begun) / (blocks * rounds)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of a call in seconds, and its result: what one core does, however busy the machine."""
    begun = time.process_time()
    result = function()
    return time.process_time() - begun, result


if __name__ == "__main__":
    raise SystemExit(main())
