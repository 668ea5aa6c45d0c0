"""`deepreduce serve`: the server's party."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from ..errors import UsageError, problem
from ._console import say
from ._private import STORE_HELP, add_threads, gigabytes, workers_and_threads


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the server's file, from deepreduce export")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="where to listen; port 0 takes a free one")
    parser.add_argument("--cert", type=Path, required=True, metavar="PEM", help="certificate of the server")
    parser.add_argument("--key", type=Path, required=True, metavar="PEM", help="its private key")
    parser.add_argument(
        "--client-ca", type=Path, metavar="PEM", help="admit only clients with a certificate of this CA"
    )
    parser.add_argument(
        "--client-crl", type=Path, metavar="PEM", help="refuse the certificates in this list of the CA; it is read once"
    )
    parser.add_argument("--store", type=Path, metavar="DIR", help=STORE_HELP)
    parser.add_argument(
        "--store-limit",
        type=gigabytes,
        default=gigabytes("20"),
        metavar="GB",
        help="most that bundles may take on the disk (default 20): strangers decide how many there are",
    )
    parser.add_argument(
        "--reveal",
        choices=["label", "logits"],
        default="label",
        help="what clients may learn (default label); logits allows both",
    )
    parser.add_argument("--clients", type=int, default=8, metavar="N", help="connections at once (default 8)")
    parser.add_argument("--images", type=int, default=64, metavar="N", help="most images of one request (default 64)")
    parser.add_argument(
        "--batch-memory",
        type=gigabytes,
        default=256 << 20,
        metavar="GB",
        help="most memory of one request's images, or of the shares of bundles that are prepared together (default "
        "0.27); where they need more, fewer go at once",
    )
    parser.add_argument(
        "--bundles", type=int, default=1000, metavar="N", help="most bundles of one request (default 1000)"
    )
    parser.add_argument(
        "--bundles-per-day",
        type=int,
        metavar="N",
        help="most bundles for one client in 24 hours, by its certificate with --client-ca, else by its address "
        "(default: no limit): every answer teaches a little of the weights",
    )
    parser.add_argument(
        "--deadline", type=float, default=120.0, metavar="S", help="longest wait for a client, in seconds (default 120)"
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings alone")
    add_threads(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..private.deployment import load_server
    from ..private.ring import set_threads
    from ..private.service import Server, ServerLimits, default_store
    from ..private.store import BundleStore
    from ..private.wire import parse_address, server_context

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING if options.quiet else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    limits = ServerLimits(
        reveal=("label",) if options.reveal == "label" else ("label", "logits"),
        clients=options.clients,
        images=options.images,
        bundles=options.bundles,
        bundles_per_day=options.bundles_per_day,
        deadline_seconds=options.deadline,
        batch_bytes=options.batch_memory,
    )
    context = server_context(options.cert, options.key, client_ca=options.client_ca, client_crl=options.client_crl)
    host, port = parse_address(options.listen, listening=True, where="--listen")
    model = load_server(options.file, serving=True)
    folder = default_store(options.file) if options.store is None else options.store
    store = BundleStore(folder, program=model.client.digest, role="server", limit_bytes=options.store_limit)
    workers, threads = workers_and_threads(options)
    # Threads of one product wait for each other where several clients want all cores at once.
    set_threads(threads if options.clients == 1 else 1)

    def progress(done: int, total: int) -> None:
        if done == 0:
            say("preparing the weights")
        if done == total:
            say("the weights are ready")

    # Before the weights, so that a wrong address is told at once; who connects meanwhile waits.
    listener = _listen(host, port)
    with (
        listener,
        Server(
            model,
            store,
            weights_folder=folder / "weights",
            limits=limits,
            workers=workers,
            threads=threads,
            progress=progress,
        ) as server,
    ):
        # This line is what scripts wait for.
        print(f"listening on {_written(listener)}", flush=True)
        if threading.current_thread() is threading.main_thread():
            about = model.client.about
            say(f"{about.network}: {about.relus:,} ReLUs; process {os.getpid()}; stop with Ctrl-C")
        with suppress(KeyboardInterrupt):  # that is how a server ends
            server.serve(listener, context)
        say("\nstopped")
    return 0


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(
            problem(
                "the server can listen at --listen",
                got=error.strerror or error,
                remedy="choose a free port of this computer, and one above 1023 unless you are root",
                where=f"{host} port {port}",
            )
        ) from error


def _written(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
