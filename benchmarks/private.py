"""Private inference end to end: two processes over TLS, the full network and reduced ones, on one machine.

    python benchmarks/private.py --network resnet18 --input 3x32x32
    python benchmarks/private.py --network mobilenet_v1 --input 3x32x32 --cases full
    python benchmarks/private.py --saved "ours 7,168=RUN/candidate/ID/seed0" --saved "snl 7,168=..." --name methods

For every case a server (`deepreduce serve`) and a client are started; the client prepares bundles, runs single images,
and its labels and logits are held against the plain-integer twin. Offline and online are measured apart, by the
client's clock: online from the first masked byte to the label, with connection, bundle and program in memory. Offline
is for one bundle alone, and also what each has of `--together` that are prepared in one go, if that is no more than
some gigabytes. Peak memory is that of all processes of a party. `loopback` has no limit; `lan` (1 Gbit/s, 1 ms round
trip) and `wan` (100 Mbit/s, 40 ms) are lines of `link.py` with real TCP, for which it must run as root on Linux. There
a connection begins slowly: beside the images that follow one another stand one after a pause, and the first ones of new
connections.

Weights are random and batch norms settled. What a network has learnt changes its formats, and its cost by some percent.
With `--saved` trained networks are run instead, those of `reduce` or `reproduce.py`, all of one input size. Finished
cases are kept in the data file; the same command continues. Kernel speed is measured beside `openssl speed`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from garbling import measure, random_ands
from link import SERVER, Line
from machine import public, results_path, summary

import deepreduce
from deepreduce._cores import available_cores
from deepreduce.networks import NetworkSpec
from deepreduce.private import delphi_online_seconds, garbling
from deepreduce.private.deployment import About, ServerModel, load_client, load_server, make_model, save_model
from deepreduce.private.estimate import LINKS as ESTIMATED
from deepreduce.private.estimate import our_cost
from deepreduce.private.program import Program, make_program
from deepreduce.private.ring import set_threads
from deepreduce.private.service import Client
from deepreduce.private.store import BundleStore
from deepreduce.private.twin import Twin
from deepreduce.private.wire import client_context, self_signed
from deepreduce.reduction import Candidate, build_candidate, make_base
from deepreduce.reduction.recipe import load_network

THINNED = {"keep": ["S2", "S3", "S4"], "thin": True}
NARROW = {"keep": ["S3", "S4"], "thin": True, "beta": (0.4415, 1), "trim": (1, 1)}
CASES: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("resnet18", "3x32x32"): {
        "114,688": THINNED,
        "28,672": THINNED | {"rho": 0.5},
        "12,288": {"keep": ["S2", "S3"], "thin": True, "alpha": 0.5, "rho": 0.5},
        "12,232 narrow": NARROW | {"bypass": True},
        "12,232 narrow, not bypassed": NARROW,
        "12,232 narrow, collapsed": NARROW | {"bypass": True, "collapse": True},
        "28,648 narrow": THINNED | {"beta": (0.4375, 0.8946, 1), "trim": (2, 1, 1), "drop": ("layer2.1.relu1",)},
    },
    ("resnet18", "3x64x64"): {
        "458,752": THINNED,
        "393,216": {"keep": ["S3", "S4"]},
        "114,688": THINNED | {"rho": 0.5},
        "57,344": THINNED | {"alpha": 0.5, "rho": 0.5},
        "24,576": {"keep": ["S3", "S4"], "thin": True, "alpha": 0.5, "rho": 0.5},
    },
    ("resnet34", "3x32x32"): {"253,952": THINNED, "63,488": THINNED | {"rho": 0.5}},
    ("mobilenet_v1", "3x32x32"): {"118,784": THINNED, "29,696": THINNED | {"rho": 0.5}},
    ("wide_resnet_22_8", "3x32x32"): {
        "294,912": {"keep": ["S2", "S3"], "thin": True},
        "73,728": {"keep": ["S2", "S3"], "thin": True, "rho": 0.5},
    },
    ("timm:resnet18", "3x224x224"): {
        "351,232": {"keep": ["S3", "S4", "S5"], "thin": True, "average_pooling": True},
        "150,528": {"keep": ["S4", "S5"], "thin": True, "average_pooling": True},
        "50,176": {"keep": ["S5"], "thin": True, "average_pooling": True},
    },
}
"""Reduced networks by network and input: DeepReDuce's, tables 3 and 4 and for 64x64, and of our method; then culled and
thinned ones of the other networks, and of the one that is usual for larger images. Every network has `full`, too."""

LINKS = {"loopback": None, "lan": (1e9, 0.001), "wan": (100e6, 0.040)}
"""Bits per second and round trip in seconds."""

_PAUSE_SECONDS, _PAUSED, _FRESH = 2.0, 2, 3
"""Silence before an image, and how many images after it and on new connections."""

_IMAGES = {"loopback": 7, "lan": 4, "wan": 3}
"""Single images per case and link; the first one is left out of the medians."""

_MOST_TOGETHER_BYTES = {"loopback": 12_000_000_000, "lan": 12_000_000_000, "wan": 3_000_000_000}
"""Bundles that are more bytes are not prepared together: they would take minutes, and the disk."""


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--input", default="3x32x32")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--cases", default=None, help="separated by ';' (default: all that are known)")
    parser.add_argument(
        "--saved", action="append", type=saved, help="LABEL=FOLDER of a saved network, in place of cases"
    )
    parser.add_argument("--name", help="of the data file (default: that of the network)")
    parser.add_argument("--links", default="loopback,lan,wan")
    cores = available_cores()
    parser.add_argument("--threads", type=int, default=cores, help="of the client; the server has half as many")
    parser.add_argument("--workers", type=int, default=cores, help="homomorphic workers of each party; they alternate")
    parser.add_argument("--together", type=int, default=64, help="bundles that are prepared together; 0 for none")
    parser.add_argument("--work", type=Path, default=Path("build/private"), help="models, bundles, certificates")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)  # the benchmark starts itself as the client
    parser.add_argument("--connect", help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--pauses", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client is not None:
        return play_client(options)
    size = tuple(int(part) for part in options.input.split("x"))
    options.saved = dict(options.saved or [])
    if options.saved and not options.name:
        parser.error("--saved needs --name: trained networks have a data file of their own")
    known_cases = ["full", *CASES.get((options.network, options.input), {})]
    names = list(options.saved) or (options.cases.split(";") if options.cases else known_cases)
    processor = str(deepreduce.environment()["processor"])
    own = f"{options.network}-{options.input}".removesuffix("-3x32x32")
    name = options.name or re.sub(r"\W+", "_", own)
    path = results_path(options.results, f"private-{name}", processor)
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    drawn = f"{options.network}, {options.input}, {options.classes} classes, random weights"
    what = "trained networks, as named" if options.saved else drawn
    if result.get("network", what) != what:
        raise SystemExit(f"{path} holds other networks ({result['network']}); give another --name")
    result |= {
        "what": "private inference end to end, both parties on this machine; seconds are the client's",
        "network": what,
        "environment": deepreduce.environment(command=["python", "benchmarks/private.py", *map(_public, sys.argv[1:])]),
        "threads": {"client": options.threads, "server": max(1, options.threads // 2)},
        "workers_per_party": options.workers,
        "seeds": {"weights": 0, "calibration": 1, "images": 2},
    }
    if "kernel" not in result:
        result["kernel"] = kernel()
        write(path, result)
    options.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (options.work / "cert.pem").exists():
        self_signed(options.work, ["localhost", "127.0.0.1", SERVER])
    for name in names:
        for link in options.links.split(","):
            known = result["cases"].setdefault(name, {})
            if link in known:
                continue
            folder = export(options, name, size)
            known[link] = run_case(options, folder, link)
            known["network"] = json.loads((folder / "about.json").read_text())
            write(path, result)
            print(line(name, link, known[link], known["network"]), flush=True)
    write(path, result)
    print(path)
    return 0


def export(options: argparse.Namespace, name: str, size: tuple[int, ...]) -> Path:
    """Write server's and client's file of a case, and what it is; an earlier one is taken as it is."""
    folder = options.work / re.sub(r"\W+", "-", f"{options.name or options.network}-{options.input}-{name}")
    if (folder / "about.json").exists():
        was = json.loads((folder / "about.json").read_text()).get("weights_sha256")
        if name in options.saved and was != weights_of(options.saved[name]):
            raise SystemExit(f"{name}: {folder} holds another network; give another label, or remove the folder")
        return folder
    images = smooth(64, size, seed=1)
    base = None
    if name in options.saved:
        network, recipe = load_network(options.saved[name])
        if recipe.spec.input != size:
            raise SystemExit(f"{name}: it takes images of {recipe.spec.input}, --input says {size}")
        base = recipe.spec.to_json()
        about = About(name, recipe.relus, tuple(recipe.classes), tuple(recipe.mean), tuple(recipe.std))
        label = recipe.candidate.label if recipe.candidate else "full"
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (recipe.mean, recipe.std))
        images = (images * 0.5 + 0.5 - mean) / std
    else:
        network, label = untrained(options, name, size, images)
        half = tuple([0.5] * size[0])
        about = About(f"{options.network} {name}", 0, tuple(map(str, range(options.classes))), half, half)
    begin = time.perf_counter()
    program = make_program(network.eval(), images)
    public = program.public
    model = make_model(program, replace(about, relus=public.relus))
    save_model(model, folder, replace=True)
    weights = weights_of(options.saved[name]) if name in options.saved else None
    saved = {"candidate": label, "base": base, "weights_sha256": weights}
    write_about(folder, model, program, saved, time.perf_counter() - begin)
    return folder


def weights_of(folder: Path) -> str:
    """Return the SHA-256 of a saved network's weights."""
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def saved(text: str) -> tuple[str, Path]:
    """Read LABEL=FOLDER."""
    label, _, folder = text.partition("=")
    if not (label and (Path(folder) / "recipe.json").is_file()):
        raise argparse.ArgumentTypeError(f"{text!r}: LABEL=FOLDER, a folder with recipe.json")
    return label, Path(folder)


def saved_places(networks: Iterable[tuple[str, Path]]) -> list[str]:
    """Return what names saved networks on a command line, without folders of this machine."""
    return [word for label, folder in networks for word in ("--saved", _public(f"{label}={folder}"))]


def _public(word: str) -> str:
    """Leave out folders of this machine."""
    label, equals, folder = word.removeprefix("--saved=").partition("=")
    if (equals and not word.startswith("--")) or word.startswith("--saved="):
        return f"{label}={Path(folder).parent.name}/{Path(folder).name}"
    return public(word)


def untrained(
    options: argparse.Namespace, name: str, size: tuple[int, ...], images: torch.Tensor
) -> tuple[torch.nn.Module, str]:
    """Return the network of a case with random weights, and what it keeps."""
    torch.manual_seed(0)
    spec = NetworkSpec(name=options.network, input=size, classes=options.classes)
    base = make_base(spec, None)
    reduction = CASES.get((options.network, options.input), {}).get(name)
    if reduction is None and name != "full":
        raise SystemExit(f"{name}: no case of {options.network} at {options.input}")
    kept = [stage.name for stage in base.census.stages] if reduction is None else reduction["keep"]
    candidate = Candidate(**{**(reduction or {}), "keep": tuple(kept)})
    network = build_candidate(base, candidate)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        network.train()(images)
    return network, candidate.label if reduction else "full"


def write_about(folder: Path, model: ServerModel, program: Program, saved: dict[str, Any], seconds: float) -> None:
    """Write what a case is, beside its files: the mark that it is complete."""
    public = program.public
    layout = model.client.layout
    kinds: dict[str, int] = {}
    for unit in layout.units:
        kind = unit.step.circuit.kind if unit.step.circuit is not None else ""
        kinds[kind] = kinds.get(kind, 0) + unit.instances
    assert program.report is not None
    content = {
        **saved,
        "relus": public.relus,
        "circuits": kinds,
        "and_gates": sum(unit.and_gates for unit in layout.units),
        "macs": public.macs,
        "rings": sorted({public.tensors[job.step.output].ring_bits for job in layout.jobs}),
        "widths": sorted({unit.step.circuit.width for unit in layout.units if unit.step.circuit is not None}),
        "weight_bits": model.client.weight_bits,
        "parameters": [[one.ring_bits, list(one.prime_bits)] for one in layout.parameters],
        "ciphertexts": [sum(j.plan.plan.requests for j in layout.jobs), sum(j.plan.plan.answers for j in layout.jobs)],
        "agreement": vars(program.report.agreement),
        "failures": program.report.failures,
        "program_seconds": seconds,
        "delphi_online_seconds": delphi_online_seconds(public.relus, public.macs),
        "estimate": our_cost(layout, list(ESTIMATED.values())).to_json(),
    }
    (folder / "about.json").write_text(json.dumps(content))


def smooth(count: int, size: tuple[int, ...], *, seed: int) -> torch.Tensor:
    """Random images in which neighbours are alike, as in photographs; within the pixel range."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, size[0], 8, 8, generator=generator)
    images = torch.nn.functional.interpolate(low, size=size[1:], mode="bilinear", align_corners=False)
    return ((images * 255).round() / 255 - 0.5) / 0.5


def pixels(count: int, size: tuple[int, ...], *, seed: int) -> np.ndarray:
    """The same as bytes."""
    return ((smooth(count, size, seed=seed).numpy() * 0.5 + 0.5) * 255).round().astype(np.uint8)


def run_case(options: argparse.Namespace, folder: Path, link: str) -> dict[str, Any]:
    """Run both parties over one link; return what the client measured and what the parties took."""
    layout = load_client(folder / "client.safetensors").layout
    with ExitStack() as stack:
        limits = LINKS[link]
        line = None if limits is None else stack.enter_context(Line(*limits))
        server, address = stack.enter_context(serving(options, folder, line))
        typed = [sys.executable, __file__, "--client", str(folder), "--connect", address]
        typed += ["--images", str(_IMAGES[link]), "--threads", str(options.threads)]
        typed += ["--workers", str(options.workers), "--work", str(options.work)]
        too_much = layout.offline_bytes(max(1, options.together)) > _MOST_TOGETHER_BYTES[link]
        typed += ["--together", str(0 if too_much else options.together)]
        if line is not None:
            typed = line.within("client", [*typed, "--pauses"])
        client = subprocess.run(typed, capture_output=True, text=True, check=False, timeout=3000)
        if client.returncode:
            raise SystemExit(f"the client failed:\n{client.stderr}")
        measured: dict[str, Any] = json.loads(client.stdout.splitlines()[-1])
        measured["server_peak_bytes"] = peak_bytes(server.pid)  # with what was prepared together
        log = (folder / "serve.log").read_text()
    parts = re.findall(r"linear ([\d.]+) s, circuits ([\d.]+) s, channel ([\d.]+) s", log)
    names = ("linear", "circuits", "channel")
    measured["server_seconds"] = {
        name: statistics.median(float(row[index]) for row in parts[1:]) for index, name in enumerate(names)
    }
    model = load_server(folder / "server.safetensors")
    images = pixels(_IMAGES[link], model.client.public.input.shape, seed=2)
    twin = Twin(model.program).run(model.client.normalise(images))
    labels = np.array(measured.pop("labels"))
    logits = np.array(measured.pop("logits"))
    # An untrained network's largest logits lie close together: a rounding may decide.
    measured["labels_equal_to_twin"] = f"{int((labels == twin.labels).sum())} of {len(labels)}"
    measured["largest_logit_difference_to_twin"] = float(np.abs(logits - twin.logits[-1]).max())
    return measured


@contextmanager
def serving(
    options: argparse.Namespace, folder: Path, line: Line | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the server, on loopback or at one end of a line; it is ended by its process id. Give its address, too."""
    host = "127.0.0.1" if line is None else SERVER
    log = (folder / "serve.log").open("w")
    typed = [sys.executable, "-m", "deepreduce.cli", "serve", str(folder / "server.safetensors")]
    typed += [
        "--listen",
        f"{host}:0",
        "--cert",
        str(options.work / "cert.pem"),
        "--key",
        str(options.work / "key.pem"),
    ]
    typed += ["--reveal", "logits", "--workers", str(options.workers), "--threads", str(max(1, options.threads // 2))]
    if line is not None:
        typed = line.within("server", typed)
    with log, subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=log, text=True) as server:
        try:
            assert server.stdout is not None
            words = server.stdout.readline().rsplit(":", 1)
            if len(words) != 2:
                raise SystemExit((folder / "serve.log").read_text())
            yield server, f"{host}:{int(words[1])}"
        finally:
            server.terminate()


def play_client(options: argparse.Namespace) -> int:
    """Be the client: prepare, infer, print one line of JSON."""
    set_threads(options.threads)
    model = load_client(options.client / "client.safetensors")
    store = BundleStore(options.client / "client-bundles", program=model.digest, role="client")
    for name in store.names():
        store.take(name).close()  # what an interrupted run left
    images = pixels(options.images, model.public.input.shape, seed=2)
    context = client_context(options.work / "cert.pem")

    def connect(workers: int) -> Client:
        return Client.connect(
            options.connect, context, model, store, workers=workers, threads=options.threads, deadline_seconds=600
        )

    slow: dict[str, Any] = {}
    with connect(options.workers) as client:
        offline = [client.prepare(1) for _ in images]
        online = [client.infer(image[None]) for image in images]
        if options.pauses:
            client.prepare(_PAUSED + _FRESH)
            slow["online_after_a_pause_seconds"] = summary([after_a_pause(client, images[-1:]) for _ in range(_PAUSED)])
            slow["online_first_seconds"] = summary([first_image(connect(0), images[-1:]) for _ in range(_FRESH)])
        client.prepare(1)
        revealed = client.infer(images[-1:], reveal="logits")
        peak = peak_bytes(os.getpid())
        together = prepared_together(client, options.together) if options.together else {}
    assert revealed.logits is not None
    relus = model.about.relus
    traffic = online[-1].traffic
    print(
        json.dumps(
            {
                "labels": [int(one.labels[0]) for one in online],
                "logits": revealed.logits[0].tolist(),
                "online_seconds": summary([one.seconds for one in online[1:]]),
                **slow,
                "online_sent_bytes": traffic.sent_bytes,
                "online_received_bytes": traffic.received_bytes,
                "online_bytes_per_relu": (traffic.sent_bytes + traffic.received_bytes) / max(1, relus),
                "online_round_trips": traffic.turns,
                "client_seconds": {
                    "circuits": statistics.median(one.parts.circuits for one in online[1:]),
                    "channel": statistics.median(one.parts.channel for one in online[1:]),
                },
                "setup_and_first_bundle_seconds": offline[0].seconds,
                "offline_seconds": summary([one.seconds for one in offline[1:]]),
                "offline_sent_bytes": offline[-1].traffic.sent_bytes,
                "offline_received_bytes": offline[-1].traffic.received_bytes,
                "stored_bytes": offline[-1].stored_bytes,
                "stored_bytes_per_relu": offline[-1].stored_bytes / max(1, relus),
                "client_peak_bytes": peak,
                **together,
            }
        )
    )
    return 0


def prepared_together(client: Client, bundles: int) -> dict[str, Any]:
    """Prepare bundles in one go; return what each has of it, and the memory that it took this party."""
    made = client.prepare(bundles)
    return {
        "together": {
            "bundles": bundles,
            "seconds_each": made.seconds / bundles,
            "sent_bytes_each": made.traffic.sent_bytes / bundles,
            "received_bytes_each": made.traffic.received_bytes / bundles,
            "client_peak_bytes": peak_bytes(os.getpid()),
        }
    }


def after_a_pause(client: Client, image: np.ndarray) -> float:
    """Return the seconds of an image before which nothing was sent for a while."""
    time.sleep(_PAUSE_SECONDS)
    return client.infer(image).seconds


def first_image(client: Client, image: np.ndarray) -> float:
    """Return the seconds of the first image of a connection, and end it."""
    with client:
        return client.infer(image).seconds


def peak_bytes(pid: int) -> dict[str, int]:
    """Return the peak resident memory of a process and the sum over its workers, from /proc."""
    found = {"process": _peak(pid), "workers": 0}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue  # it ended meanwhile
        if f"\nPPid:\t{pid}\n" in text:
            found["workers"] += _peak(int(status.parent.name))
    return found


def _peak(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(row.split()[1]) * 1024 for row in text.splitlines() if row.startswith("VmHWM")), 0)


def kernel() -> dict[str, Any]:
    """AND gates per second and core of the garbling kernel beside OpenSSL's AES-128 on 16 KiB."""
    output = subprocess.run(
        ["openssl", "speed", "-elapsed", "-seconds", "2", "-bytes", "16384", "-evp", "aes-128-ecb"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.search(r"AES-128-ECB\s+([\d.]+)k", output)
    backend = garbling.get_backend()
    ands = measure(random_ands(), 64, backend, 60)
    blocks = 1000 * float(found[1]) / 16 if found else None
    return {
        "backend": garbling.describe(),
        "openssl_aes_blocks_per_second": blocks,
        "garble_and_gates_per_second": 1e9 / ands["garble_ns_per_and"]["median"],
        "evaluate_and_gates_per_second": 1e9 / ands["evaluate_ns_per_and"]["median"],
        "aes_calls_per_openssl_aes": None if blocks is None else 2e9 / ands["evaluate_ns_per_and"]["median"] / blocks,
    }


def line(name: str, link: str, case: dict[str, Any], network: dict[str, Any]) -> str:
    """Write one row of the table."""
    memory = sum(case["client_peak_bytes"].values()) / 1e6, sum(case["server_peak_bytes"].values()) / 1e6
    return (
        f"{name:>8} {link:8}  online {case['online_seconds']['median']:7.3f} s"
        f" (DELPHI {network['delphi_online_seconds']:.1f})"
        f"  {case['online_bytes_per_relu']:5.0f} B/ReLU  offline {case['offline_seconds']['median']:6.2f} s"
        f"  kept {case['stored_bytes_per_relu']:5.0f} B/ReLU  {case['online_round_trips']} round trips"
        f"  peak client {memory[0]:.0f} MB, server {memory[1]:.0f} MB  as twin {case['labels_equal_to_twin']}"
    )


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the data file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
