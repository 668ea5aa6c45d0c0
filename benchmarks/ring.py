"""Products in rings: every linear layer of ResNet18 and of three reduced networks, by each arithmetic in turn.

For 3x32x32 images, with weights and rings as the protocol has them, one image and one thread. The arithmetics that run
here take turns layer by layer, so that a busy machine slows down all of them; the fastest of the repeats counts. All
must give the same words.

    python benchmarks/ring.py

The result is a data file in results/, named by processor and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor_name, results_path
from private import smooth, untrained

import deepreduce
from deepreduce.private.program import Convolution, Program, make_program
from deepreduce.private.ring import ExactConvolution, ExactMatrix, available_backends, random_words, set_threads

SIZE = (3, 32, 32)
NETWORKS = ("full", "114,688", "28,672", "12,288")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the data file")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    set_threads(1)

    rows = []
    for name in NETWORKS:
        images = smooth(64, SIZE, seed=1)
        described = argparse.Namespace(network="resnet18", input="3x32x32", classes=100)
        network, _ = untrained(described, name, SIZE, images)
        row = measure(name, make_program(network.eval(), images), options.repeats)
        rows.append(row)
        total = {backend: round(1e3 * seconds, 2) for backend, seconds in row["seconds"].items()}
        print(f"{name:>8}  {row['macs'] / 1e6:6.1f} M products  milliseconds {total}", flush=True)

    processor = processor_name()
    result = {
        "what": "linear layers of untrained ResNet18s in their rings: seconds for one image by one thread",
        "command": f"python benchmarks/ring.py --repeats {options.repeats}",
        "processor": processor,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "deepreduce": deepreduce.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "networks": rows,
    }
    path = results_path(options.results, "ring", processor, date=str(result["date"]))
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def measure(name: str, program: Program, repeats: int) -> dict[str, Any]:
    """Return the seconds of every linear layer of a program by every backend, and their sums."""
    layers = []
    for layer, bits, shape, product in linear(program):
        products = {backend: product(backend=backend) for backend in available_backends()}
        x = random_words((1, *shape), bits)
        words = {backend: multiply(x, bits) for backend, multiply in products.items()}
        if any(not np.array_equal(one, words["torch"]) for one in words.values()):
            raise SystemExit(f"{name}, {layer['weights']}: the arithmetics differ")
        seconds = dict.fromkeys(products, float("inf"))
        for _ in range(repeats):
            for backend, multiply in products.items():
                begun = time.perf_counter()
                multiply(x, bits)
                seconds[backend] = min(seconds[backend], time.perf_counter() - begun)
        layers.append({**layer, "input": list(shape), "ring_bits": bits, "seconds": seconds})
    return {
        "network": name,
        "macs": sum(layer["macs"] for layer in layers),
        "seconds": {backend: sum(layer["seconds"][backend] for layer in layers) for backend in available_backends()},
        "layers": layers,
    }


def linear(program: Program) -> Iterator[tuple[dict[str, Any], int, tuple[int, ...], Callable[..., Any]]]:
    """Yield the linear layers: what they are, the bits of their rings, the size of one input, and how to make one."""
    for step in program.public.steps:
        if not step.weighted:
            continue
        weight, op = program.weights[step.output].weight.astype(np.int64), step.op
        output, shape = program.public.tensors[step.output], program.public.tensors[step.inputs[0]].shape
        if isinstance(op, Convolution):
            geometry = {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
            size, places, make = (
                shape[-3:],
                int(np.prod(output.shape[-2:])),
                partial(ExactConvolution, weight, **geometry),
            )
        else:
            size, places, make = shape[-1:], 1, partial(ExactMatrix, weight)
        yield {"weights": list(weight.shape), "macs": weight.size * places}, output.ring_bits, size, make


if __name__ == "__main__":
    raise SystemExit(main())
