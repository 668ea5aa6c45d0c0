"""What `private_constants.py` measures, in groups: one function each, of the engine's own functions."""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from private_constants_parties import both, bundles, chain, channels

from deepreduce.private import transfer, wire
from deepreduce.private.circuits import chosen_multiple, input_bits, relu
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
    PlainWeights,
    PublicKey,
    draw_share,
    generate_keys,
    plan_images,
    plan_layer,
    prepare_weights,
    receive,
    request,
    respond,
)
from deepreduce.private.homomorphic.encryption import Blinder
from deepreduce.private.homomorphic.products import TOGETHER, multiply, read_inputs
from deepreduce.private.homomorphic.taps import Gatherer
from deepreduce.private.homomorphic.wire import write_answer
from deepreduce.private.program import Circuit, Step
from deepreduce.private.protocol import infer_client, infer_server
from deepreduce.private.protocol.codec import read_question, read_reply, write_question, write_reply
from deepreduce.private.protocol.lookup import permute_client
from deepreduce.private.protocol.multiplexer import (
    ClientPart,
    ServerMasks,
    ServerOffsets,
    ask,
    client_carries,
    outputs,
    reply,
)
from deepreduce.private.protocol.packing import pack, unpack, word_type
from deepreduce.private.protocol.units import WORD_BITS, LookupUnit
from deepreduce.private.ring import ExactConvolution, default_backend, random_words, reduce
from deepreduce.private.store import BundleName, BundleStore

INSTANCES, WIDTH, TESTED, RING = 16_384, 13, 8, 28
SHORT, LONG = 1, 17
"""ReLU layers of the two networks whose times differ by that of `LONG - SHORT` layers without work."""

Samples = dict[str, list[float]]

Measured = dict[str, tuple[str, str, list[float]]]
"""By name of a constant its unit, how it came about, and the samples."""


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
    """Transfers, garbling, labels, evaluation and words of a unit of circuits, as both phases do them."""
    circuit = relu(WIDTH, RING)
    _, _, client, server = sessions()
    wires, hashes = circuit.wires_of("evaluator"), INSTANCES * circuit.hashes
    samples: Samples = {name: [] for name in ("receive", "send", "garble", "label", "evaluate", "word")}
    for number in range(repeats + 1):
        tweak = Tweak(new_start(), number, 0)
        shares, server_share = (random_words((INSTANCES,), WIDTH) for _ in range(2))
        masks = random_words((INSTANCES,), RING)

        begun = time.perf_counter()
        bits = input_bits(circuit, "evaluator", {CLIENT_SHARE: shares[:, None]})
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
        labels = garbler_labels(circuit, {SERVER_SHARE: server_share[:, None]}, seed=made.seed, delta=server.delta)
        samples["label"].append((time.perf_counter() - begun) / (INSTANCES * circuit.wires_of("garbler")))

        begun = time.perf_counter()
        got = evaluate(
            circuit, instances=INSTANCES, tables=made.tables, garbler_labels=labels, evaluator_labels=own, tweak=tweak
        )
        message = pack(mask_words(got.words, masks[:, None], circuit), RING)
        samples["evaluate"].append((time.perf_counter() - begun) / hashes)

        begun = time.perf_counter()
        out = np.zeros(INSTANCES, np.uint64)
        words = unpack(message, (INSTANCES, 1), RING)
        out[np.arange(INSTANCES)] = decode_words(words, made.offsets, circuit)[:, 0]
        samples["word"].append((time.perf_counter() - begun) / INSTANCES)
    size = f"{INSTANCES:,} garbled ReLUs of {WIDTH} bits into a ring of {RING}"
    table = {
        "transfer_client_seconds": ("receive", "s per transfer", "choice bits, extension and labels"),
        "transfer_server_seconds": ("send", "s per transfer", "extension and labels"),
        "garble_seconds_per_hash": ("garble", "s per hash of the evaluator", "garbling"),
        "label_seconds": ("label", "s per label", "the server's labels online, from its share"),
        "evaluate_seconds_per_hash": (
            "evaluate",
            "s per hash of the evaluator",
            "evaluation, masking and packing",
        ),
        "word_seconds": ("word", "s per word", "unpacking and decoding at the server"),
    }
    return {name: (unit, f"{what}: {size}", samples[key][1:]) for name, (key, unit, what) in table.items()}


def lookups(repeats: int) -> Measured:
    """Hashes, permutations and both messages of a unit of lookups, as both phases do them."""
    op = Circuit("relu", WIDTH, RING - WIDTH, tested=TESTED)
    step = Step(op, (0,), 1, "relu")
    places = np.arange(INSTANCES, dtype=np.int32)
    unit = LookupUnit(0, step, RING, places[:, None], places)
    length, words, upper = unit.index_bits, unit.pad_words, unit.upper_bits
    multiple, rng = chosen_multiple(WORD_BITS, words), np.random.default_rng(0)
    names = ("offer", "choose", "permute", "ask", "reply", "output")
    samples: Samples = {name: [] for name in names}

    def ring(bits: int, *shape: int) -> np.ndarray:
        return random_words((*shape, INSTANCES), bits).astype(word_type(bits))

    for number in range(repeats + 1):
        tweak, count = Tweak(new_start(), number, 0), INSTANCES * (length + 1)
        zero = sender_to_zero_labels(rng.integers(0, 256, (count, 1, 16), dtype=np.uint8))
        delta = transfer.new_delta()
        seconds, made = clocked(garble, multiple, instances=count, delta=delta, tweak=tweak, evaluator_zero_labels=zero)
        samples["offer"].append(seconds / (count * words))
        nothing = np.zeros(0, np.uint8), np.zeros((count, 0, 16), np.uint8)
        seconds, got = clocked(
            evaluate, multiple, instances=count, tables=nothing[0], garbler_labels=nothing[1], evaluator_labels=zero,
            tweak=tweak,
        )  # fmt: skip
        samples["choose"].append(seconds / (count * words))
        shares = random_words((2, INSTANCES), WIDTH)
        shape = (length + 1, INSTANCES, words)
        lower, upper_pads = (pads.reshape(shape)[:length] for pads in (made.offsets, made.offsets + made.factors))
        seconds, (table, _) = clocked(
            lambda share, *pads: permute_client(client_carries(op, share), *pads), shares[1], lower, upper_pads
        )
        samples["permute"].append(seconds / (INSTANCES * length * unit.table_words))
        masks = ServerMasks(table, ring(length + 1), ring(RING), ring(upper, 2))
        offsets = ServerOffsets(ring(RING), ring(RING), ring(upper))
        ours = ClientPart(table, shares[1], ring(2), ring(RING), ring(upper, 2), ring(RING, 2), ring(RING))

        begun = time.perf_counter()
        question, asked = ask(op, shares[0], masks, RING)
        message = np.concatenate(write_question(unit, question))
        samples["ask"].append((time.perf_counter() - begun) / INSTANCES)

        begun = time.perf_counter()
        answer = reply(op, read_question(unit, message), ours, RING)
        message = np.concatenate(write_reply(unit, answer))
        samples["reply"].append((time.perf_counter() - begun) / INSTANCES)

        begun = time.perf_counter()
        out = np.zeros(INSTANCES, np.uint64)
        out[places] = outputs(op, read_reply(unit, message), asked, offsets, RING)
        samples["output"].append((time.perf_counter() - begun) / INSTANCES)
        assert got.words.size
    size = f"{INSTANCES:,} ReLUs of {WIDTH} bits, {TESTED} of them tested, into a ring of {RING}"
    table_of = {
        "offer": ("s per transfer and word", "what the other chooses of"),
        "choose": ("s per transfer and word", "what was chosen"),
        "permute": ("s per word of a table and bit of its index", "the client's share of the tables"),
        "ask": ("s per ReLU", "the server's message"),
        "reply": ("s per ReLU", "the client's message"),
        "output": ("s per ReLU", "the server's share of the outputs"),
    }
    return {
        f"{key}_seconds": (unit_of, f"{what}: {size}", samples[key][1:]) for key, (unit_of, what) in table_of.items()
    }


def homomorphic(repeats: int) -> Measured:
    """Ciphertexts and products, with two and with three primes."""
    found: Measured = {}
    layer = Layer(64, 64, 16, 16, (3, 3), (1, 1), (1, 1))
    plan = plan_layer(layer)
    weights = np.random.default_rng(0).integers(-128, 128, layer.weight_shape)
    for parameters in (Parameters(30, (60, 60)), Parameters(59, (60, 48, 48))):  # as networks with long stretches have
        primes = len(parameters.prime_bits)
        samples: Samples = {name: [] for name in ("keys", "encrypt", "unpack", "product", "answer", "decrypt")}
        for _ in range(max(3, repeats // 2)):
            seconds, keys = clocked(generate_keys, parameters)
            samples["keys"].append(seconds)
            public = PublicKey.of(keys)
            prepared = prepare_weights(parameters, plan, weights, weight_bits=8)
            seconds, asked = clocked(request, keys, plan, draw_share(parameters, layer.in_shape))
            samples["encrypt"].append(seconds / plan.requests)

            begun = time.perf_counter()
            inputs = read_inputs(parameters, dict(enumerate(asked.bodies)))
            samples["unpack"].append((time.perf_counter() - begun) / plan.requests)

            begun, products = time.perf_counter(), []
            for first in range(0, plan.answers, TOGETHER):
                products += multiply(prepared, inputs, range(plan.answers)[first : first + TOGETHER])
            samples["product"].append((time.perf_counter() - begun) / plan.products)

            begun = time.perf_counter()
            blinder = Blinder(public)
            for answer, product in enumerate(products):
                blinded, _ = blinder.blind(product)
                write_answer(parameters, blinder.switch(blinded), plan.results[answer][0])
            samples["answer"].append((time.perf_counter() - begun) / plan.answers)

            answer = respond(prepared, public, asked).answer
            samples["decrypt"].append(clocked(receive, keys, answer)[0] / plan.answers)
        how = f"{layer.in_channels} to {layer.out_channels} channels, 3x3, of a 16x16 map, {primes} primes, N = 8192"
        for name in ("encrypt", "unpack", "product", "answer", "decrypt"):
            unit = "s per product" if name == "product" else "s per ciphertext"
            found[f"{name}_{primes}_primes_seconds"] = (unit, how, samples[name])
        found |= shared(parameters, layer, weights, max(3, repeats // 2))
        found["keys_seconds"] = ("s per pair of keys", f"{primes} primes", samples["keys"])
    return found


def shared(parameters: Parameters, layer: Layer, weights: np.ndarray, repeats: int) -> Measured:
    """What a server does with the ciphertexts of several images, beside unpacking and blinding."""
    keys, primes, samples = generate_keys(parameters), len(parameters.prime_bits), Samples(spread=[], tap=[])
    plan = plan_images(layer, 64)[0]
    plain = PlainWeights(parameters, plan, weights.astype(np.int32))
    asked = dict(enumerate(request(keys, plan, draw_share(parameters, plan.in_shape)).bodies))
    for _ in range(repeats):
        unpacked, _ = clocked(read_inputs, parameters, asked)
        seconds, gatherer = clocked(Gatherer, plain, asked)
        samples["spread"].append(max(0.0, seconds - unpacked) / plan.requests)
        begun = time.perf_counter()
        for first in range(0, plan.answers, TOGETHER):
            list(gatherer.sums(range(plan.answers)[first : first + TOGETHER]))
        samples["tap"].append((time.perf_counter() - begun) / (plan.answers * plan.weights_per_answer))
    how = f"{plan.tiling.images} images, {layer.in_channels} to {layer.out_channels} channels, 3x3, of a 16x16 map"
    units = {"spread": "s per ciphertext", "tap": "s per weight and answer"}
    return {
        f"{name}_{primes}_primes_seconds": (units[name], f"{how}, {primes} primes, N = 8192", samples[name])
        for name in samples
    }


def linear(repeats: int) -> Measured:
    """Convolutions of the server's share in the clear, and steps without weights."""
    rng = np.random.default_rng(0)
    per_mac: dict[int, list[float]] = {30: [], 59: []}
    shapes = [(64, 32), (128, 16), (256, 8), (512, 4)]
    layers = [
        (ExactConvolution(rng.integers(-500, 500, (n, n, 3, 3)), padding=(1, 1, 1, 1)), n, side) for n, side in shapes
    ]
    macs = sum(n * n * 9 * side * side for n, side in shapes)
    for _ in range(repeats + 1):
        for bits, samples in per_mac.items():
            seconds = sum(clocked(layer, random_words((1, n, side, side), bits), bits)[0] for layer, n, side in layers)
            samples.append(seconds / macs)
    values = random_words((1, 64, 32, 32), RING)
    sums = [clocked(lambda: reduce(values + values, RING))[0] / values.size for _ in range(repeats + 1)]
    how = f"3x3 convolutions of a ResNet18, {default_backend()} kernel"
    return {
        "mac_seconds": ("s per MAC", f"{how}, rings of more than 32 bits", per_mac[59][1:]),
        "narrow_mac_seconds": ("s per MAC", f"{how}, rings of 32 bits and less", per_mac[30][1:]),
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


def fixed(repeats: int) -> Measured:
    """What an inference takes that has next to nothing to compute: Python, system calls, TLS records.

    Both parties over TLS on loopback, as two threads; the processor time of both, so that it does not matter who else
    wants the cores; the faster half, because a core that is shared is slower. Two chains of layers of eight elements
    are run in turns: a layer is their difference, divided by how many more the longer one has.
    """
    count = 10 * repeats + 1
    chains = {layers: chain(layers) for layers in (SHORT, LONG)}
    seconds: dict[int, list[float]] = {layers: [] for layers in chains}
    prepared = {layers: bundles(program, count) for layers, program in chains.items()}
    with ThreadPoolExecutor(2) as threads, channels() as (client, server):
        for number in range(count):
            for layers, (layout, evaluator, materials) in prepared.items():
                own, other = materials[number]
                image = random_words((1, *layout.public.input.shape), layout.public.input.ring_bits)
                seconds[layers].append(
                    both(
                        threads,
                        partial(infer_client, client, layout, [own], image),
                        partial(infer_server, server, layout, evaluator, [other]),
                    )
                )
    short, long = faster(seconds[SHORT]), faster(seconds[LONG])
    layer = [(more - less) / (LONG - SHORT) for less, more in zip(short, long, strict=True)]
    layout, evaluator, _ = prepared[LONG]
    step = next(step for step in layout.public.steps if step.weighted)
    values = random_words((1, *layout.public.input.shape), layout.public.input.ring_bits)
    alone = faster(
        [clocked(lambda: [evaluator(step, [values], side="server") for _ in range(20)])[0] / 20 for _ in range(count)]
    )
    product, middle = statistics.median(alone), statistics.median(layer)
    how = (
        f"processor time of both parties over TLS on loopback, the faster half; {SHORT} and {LONG} layers of 8 elements"
    )
    rounds = [one - product for one in layer]
    rest = [one - SHORT * middle - product for one in short]
    return {
        "layer_seconds": (
            "s per linear layer with weights",
            "one of 8 elements at the server, online, the faster half",
            alone,
        ),
        "round_seconds": ("s per round of circuits", f"{how}, without the linear layers", rounds),
        "inference_seconds": ("s per inference", f"{how}: what is left for image, arg-max and answer", rest),
    }


def faster(values: list[float]) -> list[float]:
    """Return the faster half, sorted."""
    return sorted(values)[: (len(values) + 1) // 2]


GROUPS: dict[str, Callable[[int], Measured]] = {
    one.__name__: one for one in (base_transfers, circuits, lookups, homomorphic, linear, store, tls, fixed)
}
"""What is measured, by name."""
