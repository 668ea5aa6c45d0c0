"""What the homomorphic linear layers cost: every distinct layer of the reference networks at full size.

For each layer: ciphertexts and bytes both ways, products, seconds of wall clock and of processor, the noise budget that
is left in the answer, and whether the result equals integer convolution. For each network the sum over its layers, each
as often as it occurs, both parties on this machine and one layer after the other. And on one core, with the compiled
kernel and with SEAL and numpy alone in turn: an answer made and decrypted.

    python benchmarks/homomorphic.py --networks resnet18
    python benchmarks/homomorphic.py --ring-bits 37 --weight-bits 10

The result is a data file in results/, named by processor and date. The weights go to a temporary folder, at most
300 MB at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import results_path
from torch import nn

import deepreduce
from deepreduce.private.homomorphic import (
    Answer,
    Keys,
    Layer,
    Parameters,
    Pool,
    PreparedWeights,
    PublicKey,
    Request,
    _backends,
    check_budget,
    choose_parameters,
    draw_share,
    generate_keys,
    key_size,
    open_pool,
    plan_layer,
    prepare_weights,
    receive,
    request,
    respond,
)
from deepreduce.private.homomorphic._backends import available_backends
from deepreduce.private.homomorphic.client import _decrypt
from deepreduce.private.homomorphic.encryption import Blinder
from deepreduce.private.homomorphic.products import TOGETHER, multiply, read_inputs
from deepreduce.private.homomorphic.residues import add_modulo, compose
from deepreduce.private.homomorphic.scheme import scheme
from deepreduce.private.homomorphic.wire import read_answer, write_answer

STEPS = ("request", "respond", "receive")
NETWORKS = ("resnet18", "resnet34", "mobilenet_v1", "vgg16", "wide_resnet_22_8")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--ring-bits", type=int, default=27, help="k; single 8-bit layers need about 27")
    parser.add_argument("--weight-bits", type=int, default=8)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    options = parser.parse_args()

    counts = {name: layers_of(name, options.side) for name in options.networks}
    distinct = list(dict.fromkeys(layer for layers in counts.values() for layer in layers))
    plans = [plan_layer(layer) for layer in distinct]
    parameters = choose_parameters(plans, ring_bits=options.ring_bits, weight_bits=options.weight_bits)
    begun = time.perf_counter()
    keys = generate_keys(parameters)
    key_seconds = time.perf_counter() - begun
    rows: dict[Layer, dict[str, Any]] = {}
    with open_pool(options.workers) as pool, tempfile.TemporaryDirectory() as folder:
        pool.map(_warm, [(parameters,)] * pool.workers * 2)
        for layer in distinct:
            rows[layer] = measure(layer, keys, pool, Path(folder), options.weight_bits)
            print(line(rows[layer]), flush=True)
        workers = pool.workers
    environment = deepreduce.environment()
    report = {
        "benchmark": "homomorphic",
        "environment": environment,
        "workers": workers,
        "load_average": os.getloadavg(),
        "ring_bits": options.ring_bits,
        "weight_bits": options.weight_bits,
        "prime_bits": parameters.prime_bits,
        "flood_bits": parameters.flood_bits,
        "key_bytes": key_size(parameters),
        "key_seconds": key_seconds,
        "layers": list(rows.values()),
        "networks": {name: total(layers, rows) for name, layers in counts.items()},
    }
    for name, sums in report["networks"].items():
        print(f"{name}: {json.dumps(sums)}")
    wide = "" if (options.ring_bits, options.weight_bits) == (27, 8) else f"-k{options.ring_bits}w{options.weight_bits}"
    path = results_path(options.results, "homomorphic", environment["processor"], date=environment["date"], suffix=wide)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0 if all(row["exact"] for row in rows.values()) else 1


def layers_of(network: str, side: int) -> Counter[Layer]:
    """Return the linear layers of a reference network with their number, by running it once."""
    found: Counter[Layer] = Counter()

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        if isinstance(module, nn.Linear):
            found[Layer.linear(module.in_features, module.out_features)] += 1
        elif isinstance(module, nn.Conv2d):
            _, channels, height, width = inputs[0].shape
            pairs = [tuple(int(v) for v in pair) for pair in (module.kernel_size, module.stride, module.padding)]
            kernel, stride, padding = ((pair[0], pair[1]) for pair in pairs)
            found[Layer(channels, module.out_channels, height, width, kernel, stride, padding, module.groups)] += 1

    built = deepreduce.build(deepreduce.NetworkSpec(network, (3, side, side), 100)).eval()
    for module in built.modules():
        module.register_forward_hook(see)
    with torch.no_grad():
        built(torch.zeros(1, 3, side, side))
    return found


def measure(layer: Layer, keys: Keys, pool: Pool, folder: Path, weight_bits: int) -> dict[str, Any]:
    """Run one layer once, both parties, and check it."""
    plan, parameters = plan_layer(layer), keys.parameters
    limit = 1 << (weight_bits - 1)
    weights = np.random.default_rng(0).integers(-limit, limit, layer.weight_shape)
    file = folder / "weights"
    clock = Clock(pool)
    prepared = prepare_weights(parameters, plan, weights, weight_bits=weight_bits, file=file)
    clock.lap("prepare")
    share = draw_share(parameters, layer.in_shape)
    sent = request(keys, plan, share, pool=pool).to_bytes()
    clock.lap("request")
    response = respond(prepared, PublicKey.of(keys), Request.from_bytes(parameters, plan, sent), pool=pool)
    returned = response.answer.to_bytes()
    clock.lap("respond")
    answer = Answer.from_bytes(parameters, plan, returned)
    asked = dict(enumerate(Request.from_bytes(parameters, plan, sent).bodies))
    backends = {name: one_answer(name, prepared, keys, asked) for name in available_backends() * 2}
    clock.lap("backends")
    result = receive(keys, answer, pool=pool)
    clock.lap("receive")
    ring = np.uint64((1 << parameters.ring_bits) - 1)
    exact = np.array_equal((result + response.share) & ring, convolve(layer, share, weights) & ring)
    file.unlink()
    return {
        "layer": repr(layer),
        "tiling": repr(plan.tiling),
        "ciphertexts_sent": plan.requests,
        "ciphertexts_returned": plan.answers,
        "products": plan.products,
        "bytes_sent": len(sent),
        "bytes_returned": len(returned),
        "weights_bytes": plan.weight_polynomials * parameters.degree * len(parameters.prime_bits) * 8,
        "seconds": clock.wall,
        "processor_seconds": clock.cpu,
        "seconds_per_answer": backends,
        "noise_budget_bits": budget(keys, answer),
        "flood_bits_to_spare": check_budget(parameters, plan, weight_bits=weight_bits),
        "exact": exact,
    }


def one_answer(
    backend: str, prepared: PreparedWeights, keys: Keys, asked: dict[int, bytes], *, repeats: int = 3
) -> dict[str, float]:
    """Return the least seconds in which one answer is made of expanded inputs, and decrypted, by this process alone.

    Products are those of as many answers as a server computes together, divided by their number.
    """
    parameters, places = prepared.parameters, [prepared.plan.results[0][0]]
    own = _backends.kernel
    _backends.kernel = own if backend == "kernel" else None
    try:
        together = list(range(min(TOGETHER, prepared.plan.answers)))
        inputs, blinder, laps = read_inputs(parameters, asked), Blinder(PublicKey.of(keys)), []
        for _ in range(repeats):
            begun = time.perf_counter()
            product = multiply(prepared, inputs, together)[0]
            multiplied = time.perf_counter()
            blinded, _ = blinder.blind(product)
            body = write_answer(parameters, blinder.switch(blinded), places[0])
            made = time.perf_counter()
            _decrypt(keys, [body], places)
            decrypted = time.perf_counter()
            laps.append(((multiplied - begun) / len(together), made - multiplied, decrypted - made))
    finally:
        _backends.kernel = own
    return dict(zip(("multiply", "blind", "decrypt"), map(min, zip(*laps, strict=True)), strict=True))


def budget(keys: Keys, answer: Answer) -> float:
    """Return the least noise budget of the coefficients that an answer holds: -log2 of twice the invariant noise."""
    parameters, context = keys.parameters, scheme(keys.parameters)
    modulus, t = math.prod(context.answer_primes), 1 << parameters.ring_bits
    secret = context.evaluator.mod_switch_to(context.secret_weights(keys), context.answer_level)
    largest = 0
    for body, (places, _) in zip(answer.bodies, answer.plan.results, strict=True):
        words = read_answer(parameters, body, places)
        both = context.ciphertext(np.stack([words[1], words[1]]), "answer")  # SEAL refuses one that is zero
        product = context.evaluator.multiply_plain(context.evaluator.transform_to_ntt(both), secret)
        masked = context.words(context.evaluator.transform_from_ntt(product))[0]
        numbers = compose(add_modulo(words[0], masked, context.answer_primes), context.answer_primes)[:, places]
        phase = sum(limb.astype(object) << 64 * place for place, limb in enumerate(numbers)) * t
        noise = (phase + modulus // 2) % modulus - modulus // 2
        largest = max(largest, int(abs(noise).max()))
    return math.log2(modulus / 2 / largest)


class Clock:
    """Laps of wall clock and of processor time, workers included."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.wall, self.cpu = pool, {}, {}  # type: ignore[var-annotated]
        self._last = self._now()

    def lap(self, name: str) -> None:
        """End a lap."""
        now = self._now()
        self.wall[name], self.cpu[name] = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now

    def _now(self) -> tuple[float, float]:
        ticks = 0
        for pid in self.pool.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return time.perf_counter(), time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def convolve(layer: Layer, values: np.ndarray[Any, Any], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convolve exactly modulo 2^64, with doubles that hold 20 bits of the input at a time."""
    total = np.zeros(layer.out_shape, np.uint64)
    w = torch.from_numpy(weights.astype(np.float64))
    for low in range(0, 60, 20):
        x = torch.from_numpy(((values >> np.uint64(low)) & np.uint64(0xFFFFF)).astype(np.float64))[None]
        y = nn.functional.conv2d(x, w, stride=layer.stride, padding=layer.padding, groups=layer.groups)[0]
        total += y.numpy().astype(np.int64).view(np.uint64) << np.uint64(low)
    return total


def total(layers: Counter[Layer], rows: dict[Layer, dict[str, Any]]) -> dict[str, Any]:
    """Add up a network."""
    counted = [(rows[layer], count) for layer, count in layers.items()]
    names = ("ciphertexts_sent", "ciphertexts_returned", "products", "bytes_sent", "bytes_returned", "weights_bytes")
    return {
        **{name: sum(row[name] * count for row, count in counted) for name in names},
        "seconds": sum(row["seconds"][step] * count for row, count in counted for step in STEPS),
        "processor_seconds": sum(row["processor_seconds"][step] * count for row, count in counted for step in STEPS),
        "answers_seconds_on_one_core": {
            name: sum(
                sum(row["seconds_per_answer"][name].values()) * row["ciphertexts_returned"] * count
                for row, count in counted
            )
            for name in available_backends()
        },
        "prepare_seconds": sum(row["seconds"]["prepare"] * count for row, count in counted),
        "noise_budget_bits": min(row["noise_budget_bits"] for row, _ in counted),
        "exact": all(row["exact"] for row, _ in counted),
    }


def line(row: dict[str, Any]) -> str:
    """Lay one layer out as text."""
    wall, cpu = (sum(row[name][step] for step in STEPS) for name in ("seconds", "processor_seconds"))
    return (
        f"{row['layer'].removeprefix('Layer')}: {row['ciphertexts_sent']} + {row['ciphertexts_returned']} ciphertexts, "
        f"{row['products']} products, {row['bytes_sent'] / 1e6:.2f} + {row['bytes_returned'] / 1e6:.2f} MB, "
        f"{wall:.2f} s ({cpu:.2f} s of processor), {row['noise_budget_bits']:.1f} bits left, exact: {row['exact']}"
    )


def _warm(parameters: Parameters) -> None:
    scheme(parameters)
    time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
