"""The constants of `deepreduce estimate` for our engine: what a hash, a label, a ciphertext or a byte takes here.

Every constant is the median over some repetitions of the engine's own functions, on one core and one party at a time,
at the sizes that a ResNet18 at 32x32 has. It takes about a minute; run it on a quiet machine.

    python benchmarks/private_constants.py --write

The result is a data file in results/, named by processor and date; with --write also the packaged file, which the
estimates of everybody who installs this release use.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import results_path

import deepreduce
from deepreduce.private import transfer, wire
from deepreduce.private.circuits import input_bits, relu
from deepreduce.private.circuits.functions import CLIENT_SHARE, SERVER_SHARE
from deepreduce.private.garbling import (
    Tweak,
    decode_words,
    evaluate,
    garble,
    garbler_labels,
    mask_words,
    new_start,
    receiver_to_labels,
    sender_to_zero_labels,
)
from deepreduce.private.homomorphic import (
    Layer,
    Parameters,
    PublicKey,
    draw_share,
    generate_keys,
    plan_layer,
    prepare_weights,
    receive,
    request,
    respond,
)
from deepreduce.private.homomorphic.scheme import scheme
from deepreduce.private.homomorphic.server import blind, multiply
from deepreduce.private.homomorphic.wire import read_ciphertext, write_answer
from deepreduce.private.protocol.packing import pack, unpack
from deepreduce.private.ring import ExactConvolution, drop_server, random_words, reduce
from deepreduce.private.store import BundleName, BundleStore

PACKAGED = Path(__file__).resolve().parent.parent / "src/deepreduce/private/estimate/constants/ours.json"
INSTANCES, WIDTH, RING = 16_384, 16, 32

NOT_ACCOUNTED = [
    "greetings and the naming of bundles: some hundred bytes, and a round trip before each phase",
    "TCP's slow start, TLS records (0.13 %) and its handshake, packet headers",
    "reading the bundle from the disk before the image is sent",
    "transforming the weights, which the server does once per model",
]

Samples = dict[str, list[float]]


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="replace the packaged constants")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {}
    for measured in (base_transfers, circuits, homomorphic, linear, store, tls):
        for name, (unit, how, values) in measured(options.repeats).items():
            rows[name] = {
                "value": float(f"{statistics.median(values):.4g}"),
                "unit": unit,
                "how": how,
                "lowest": float(f"{min(values):.4g}"),
                "highest": float(f"{max(values):.4g}"),
                "n": len(values),
            }
            print(f"{name:40} {rows[name]['value']:10.3g} {unit}", flush=True)
    environment = deepreduce.environment(command=["python", *sys.argv])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    content = {
        "protocol": "ours",
        "title": "DeepReduce",
        "source": "layout of the program, exact; seconds from benchmarks/private_constants.py",
        "hardware": f"one core of {environment['processor']}, {environment['kernels'].get('garbling')} kernel",
        "date": environment["date"],
        "load_average": load,
        "command": environment["command"],
        "constants": rows,
        "not_accounted": NOT_ACCOUNTED,
    }
    path = results_path(options.results, "private_constants", environment["processor"], date=environment["date"])
    path.write_text(json.dumps({**content, "environment": environment}, indent=1) + "\n", encoding="utf-8")
    print(path)
    if options.write:
        PACKAGED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(PACKAGED)
    return 0


Measured = dict[str, tuple[str, str, list[float]]]


def clocked(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[float, Any]:
    """Return how many seconds a call took, and its result."""
    begun = time.perf_counter()
    result = function(*arguments, **named)
    return time.perf_counter() - begun, result


def sessions() -> tuple[float, float, transfer.ReceiverState, transfer.SenderState]:
    """Run the set-up of the transfers; seconds of the client and of the server, and their states."""
    session = transfer.new_session()
    one, (waiting, offer) = clocked(transfer.offer_setup, session)
    two, (chosen, choices) = clocked(transfer.choose_setup, session, transfer.new_delta(), offer)
    three, (client, sums) = clocked(transfer.plant_setup, waiting, choices)
    four, server = clocked(transfer.finish_setup, chosen, sums)
    return one + three, two + four, client, server


def base_transfers(repeats: int) -> Measured:
    """128 base transfers and the trees."""
    sessions()
    times = [sessions()[:2] for _ in range(repeats)]
    how = "128 base transfers on Ristretto255 and the trees behind them"
    return {
        "base_transfers_client_seconds": ("s per connection", how, [one for one, _ in times]),
        "base_transfers_server_seconds": ("s per connection", how, [two for _, two in times]),
    }


def circuits(repeats: int) -> Measured:
    """Transfers, garbling, labels, evaluation and words of a unit of ReLUs, as both phases do them."""
    circuit, ring = relu(WIDTH, RING), np.uint64
    _, _, client, server = sessions()
    wires, hashes = circuit.wires_of("evaluator"), INSTANCES * circuit.hashes
    samples: Samples = {name: [] for name in ("receive", "send", "garble", "label", "evaluate", "word")}
    for number in range(repeats + 1):
        tweak, shares = Tweak(new_start(), number, 0), random_words((INSTANCES, 1), WIDTH)
        masks, server_share = random_words((INSTANCES, 1), RING), random_words((INSTANCES,), RING)

        begun = time.perf_counter()
        bits = input_bits(circuit, "evaluator", {CLIENT_SHARE: shares})
        client, corrections, received = transfer.extend_receiver(client, bits.reshape(-1))
        own = receiver_to_labels(received.reshape(INSTANCES, wires, 16), bits)
        samples["receive"].append((time.perf_counter() - begun) / (INSTANCES * wires))

        begun = time.perf_counter()
        server, zeros = transfer.extend_sender(server, corrections, INSTANCES * wires)
        zero = sender_to_zero_labels(zeros.reshape(INSTANCES, wires, 16))
        samples["send"].append((time.perf_counter() - begun) / (INSTANCES * wires))

        seconds, made = clocked(
            garble, circuit, instances=INSTANCES, delta=server.delta, tweak=tweak, evaluator_zero_labels=zero
        )
        samples["garble"].append(seconds / hashes)

        begun = time.perf_counter()
        dropped = reduce(drop_server(server_share, RING, 8), WIDTH)[:, None]
        labels = garbler_labels(circuit, {SERVER_SHARE: dropped}, seed=made.seed, delta=server.delta)
        samples["label"].append((time.perf_counter() - begun) / (INSTANCES * circuit.wires_of("garbler")))

        begun = time.perf_counter()
        got = evaluate(
            circuit, instances=INSTANCES, tables=made.tables, garbler_labels=labels, evaluator_labels=own, tweak=tweak
        )
        message = pack(mask_words(got.words, masks, circuit), RING)
        samples["evaluate"].append((time.perf_counter() - begun) / hashes)

        begun = time.perf_counter()
        words, out = unpack(message, (INSTANCES, 1), RING), np.zeros(INSTANCES, ring)
        out[np.arange(INSTANCES)] = decode_words(words, made.offsets & ring((1 << RING) - 1), circuit)[:, 0]
        samples["word"].append((time.perf_counter() - begun) / INSTANCES)
    size = f"{INSTANCES:,} ReLUs of {WIDTH} bits into a ring of {RING}"
    table = {
        "transfer_client_seconds": ("receive", "s per transfer", "choice bits, extension and labels"),
        "transfer_server_seconds": ("send", "s per transfer", "extension and labels"),
        "garble_seconds_per_hash": ("garble", "s per hash of the evaluator", "garbling"),
        "label_seconds": ("label", "s per label", "the server's labels online, from its share"),
        "evaluate_seconds_per_hash": ("evaluate", "s per hash of the evaluator", "evaluation, masking and packing"),
        "word_seconds": ("word", "s per word", "unpacking and decoding at the server"),
    }
    return {name: (unit, f"{what}: {size}", samples[key][1:]) for name, (key, unit, what) in table.items()}


def homomorphic(repeats: int) -> Measured:
    """Ciphertexts and products, with two and with three primes."""
    found: Measured = {}
    layer = Layer(64, 64, 16, 16, (3, 3), (1, 1), (1, 1))
    plan = plan_layer(layer)
    weights = np.random.default_rng(0).integers(-128, 128, layer.weight_shape)
    for parameters in (Parameters(30, (56, 56)), Parameters(33, (56, 40, 40))):
        context, primes = scheme(parameters), len(parameters.prime_bits)
        samples: Samples = {name: [] for name in ("keys", "encrypt", "unpack", "product", "answer", "decrypt")}
        for _ in range(max(3, repeats // 2)):
            seconds, keys = clocked(generate_keys, parameters)
            samples["keys"].append(seconds)
            public = PublicKey.of(keys)
            prepared = prepare_weights(parameters, plan, weights, weight_bits=8)
            seconds, asked = clocked(request, keys, plan, draw_share(parameters, layer.in_shape))
            samples["encrypt"].append(seconds / plan.requests)

            begun = time.perf_counter()
            bodies = [context.seeded(*read_ciphertext(parameters, body)) for body in asked.bodies]
            samples["unpack"].append((time.perf_counter() - begun) / plan.requests)

            seconds, products = clocked(
                lambda own, inputs: [multiply(own, inputs, answer) for answer in range(plan.answers)],
                prepared,
                dict(enumerate(bodies)),
            )
            samples["product"].append(seconds / plan.products)

            begun = time.perf_counter()
            encryptor = context.public_encryptor(public.words)
            for answer, product in enumerate(products):
                blinded, _ = blind(context, encryptor, product)
                smallest = context.evaluator.mod_switch_to(blinded, context.answer_level)
                write_answer(parameters, context.words(smallest), plan.results[answer][0])
            samples["answer"].append((time.perf_counter() - begun) / plan.answers)

            answer = respond(prepared, public, asked).answer
            samples["decrypt"].append(clocked(receive, keys, answer)[0] / plan.answers)
        how = f"{layer.in_channels} to {layer.out_channels} channels, 3x3, of a 16x16 map, {primes} primes, N = 8192"
        for name in ("encrypt", "unpack", "product", "answer", "decrypt"):
            unit = "s per product" if name == "product" else "s per ciphertext"
            found[f"{name}_{primes}_primes_seconds"] = (unit, how, samples[name])
        found["keys_seconds"] = ("s per pair of keys", f"{primes} primes", samples["keys"])
    return found


def linear(repeats: int) -> Measured:
    """Convolutions of the server's share in the clear, and steps without weights."""
    rng, per_mac = np.random.default_rng(0), []
    shapes = [(64, 64, 32, 1), (128, 128, 16, 1), (256, 256, 8, 1), (512, 512, 4, 1)]
    layers = [
        (ExactConvolution(rng.integers(-500, 500, (o, i, 3, 3)), stride=(s, s), padding=(1, 1, 1, 1)), i, o, side)
        for i, o, side, s in shapes
    ]
    for _ in range(repeats + 1):
        seconds = macs = 0
        for layer, inputs, outputs, side in layers:
            limbs = 1 if layer.limb_bits >= 29 else 2
            seconds += clocked(layer, random_words((1, inputs, side, side), 30), 30)[0]
            macs += limbs * inputs * outputs * 9 * side * side
        per_mac.append(seconds / macs)
    values = random_words((1, 64, 32, 32), RING)
    sums = [clocked(lambda: reduce(values + values, RING))[0] / values.size for _ in range(repeats + 1)]
    return {
        "mac_seconds": ("s per MAC and limb", "3x3 convolutions of a ResNet18 in float64", per_mac[1:]),
        "element_seconds": ("s per element", "a sum of two tensors in a ring", sums[1:]),
    }


def store(repeats: int) -> Measured:
    """Writing a bundle: checksums, file system and flush."""
    size, times = 64 * 2**20, []
    data = np.frombuffer(os.urandom(2**20), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        place = BundleStore(Path(folder) / "bundles", program=bytes(32), role="client")
        for number in range(max(3, repeats // 3)):
            begun = time.perf_counter()
            with place.create(BundleName(bytes(16), number), {"tables": (np.dtype(np.uint8), (size,))}) as writer:
                for start in range(0, size, data.size):
                    writer.write("tables", start, data)
                writer.finish()
                writer.publish()
            times.append((time.perf_counter() - begun) / size)
    return {"store_seconds_per_byte": ("s per byte", "a bundle of 64 MiB on this machine's disk, flushed", times)}


def tls(repeats: int) -> Measured:
    """TLS between two threads over loopback, in frames of 4 MiB."""
    body, count, times = bytes(4 * 2**20), 16, []
    with tempfile.TemporaryDirectory() as folder:
        cert, key = wire.self_signed(Path(folder), ["127.0.0.1"])
        server, client = wire.server_context(cert, key), wire.client_context(cert)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=_answer, args=(listener, server, len(body), count * (repeats + 1)))
            thread.start()
            with wire.connect(f"127.0.0.1:{listener.getsockname()[1]}", client) as channel:
                for _ in range(repeats + 1):
                    begun = time.perf_counter()
                    for _ in range(count):
                        channel.send(wire.Kind.TABLES, body)
                        channel.receive(wire.Kind.GO, 0)
                    times.append((time.perf_counter() - begun) / (count * len(body)))
            thread.join()
    return {"tls_seconds_per_byte": ("s per byte", "frames of 4 MiB over TLS 1.3 on loopback", times[1:])}


def _answer(listener: Any, context: Any, size: int, count: int) -> None:
    raw, _ = listener.accept()
    with wire.accept(raw, context) as channel:
        for _ in range(count):
            channel.receive(wire.Kind.TABLES, size)
            channel.send(wire.Kind.GO)


if __name__ == "__main__":
    raise SystemExit(main())
