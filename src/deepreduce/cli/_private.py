"""Options that the commands of private inference share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .._cores import available_cores

if TYPE_CHECKING:
    from ..private.deployment import ClientModel
    from ..private.service import Client
    from ..private.store import BundleStore

STORE_HELP = "folder of the prepared bundles (default: bundles, beside FILE)"


def gigabytes(text: str) -> int:
    """Read a size in gigabytes."""
    try:
        size = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"write a number of gigabytes, not {text!r}") from None
    if not 1e-9 <= size < 1e9:  # a byte
        raise argparse.ArgumentTypeError(f"write a number of gigabytes above 0, not {text!r}")
    return int(size * 1e9)


def at_least_one(text: str) -> int:
    """Read a whole number from 1 on."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"write a whole number from 1 on, not {text!r}")
    return number


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --workers and --threads."""
    parser.add_argument(
        "--workers",
        type=at_least_one,
        metavar="N",
        help="threads for homomorphic encryption; processes where no kernel is built (default: the cores)",
    )
    parser.add_argument("--threads", type=at_least_one, metavar="N", help="threads for the rest (default: the cores)")


def workers_and_threads(options: argparse.Namespace) -> tuple[int, int]:
    """Return the two numbers that `add_threads` asks for."""
    cores = available_cores()
    return options.workers or cores, options.threads or cores


def add_connection(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add what a client needs to reach its server."""
    parser.add_argument("--connect", required=required, metavar="HOST:PORT", help="the server")
    parser.add_argument(
        "--ca",
        type=Path,
        required=required,
        metavar="PEM",
        help="the CA that signed its certificate, or the certificate",
    )
    parser.add_argument("--server-name", metavar="NAME", help="name in its certificate, if that is not HOST")
    parser.add_argument(
        "--cert", type=Path, metavar="PEM", help="certificate of this client, if the server asks for one"
    )
    parser.add_argument("--key", type=Path, metavar="PEM", help="its private key")
    parser.add_argument("--store", type=Path, metavar="DIR", help=STORE_HELP)
    parser.add_argument(
        "--store-limit",
        type=gigabytes,
        metavar="GB",
        help="most that bundles may take on the disk (default: no limit; of one beyond 4.3 GB half of what is free)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=120.0,
        metavar="S",
        help="longest wait for the server, in seconds (default 120)",
    )
    add_threads(parser)


def client_store(options: argparse.Namespace, model: ClientModel) -> BundleStore:
    """Open the folder of the client's bundles, as the options say."""
    from ..private.service import default_store
    from ..private.store import BundleStore

    folder = default_store(options.file) if options.store is None else options.store
    return BundleStore(folder, program=model.digest, role="client", limit_bytes=options.store_limit)


@contextmanager
def connected(options: argparse.Namespace, model: ClientModel) -> Iterator[Client]:
    """Connect as the options say."""
    from ..private.ring import set_threads
    from ..private.service import Client
    from ..private.wire import client_context

    workers, threads = workers_and_threads(options)
    set_threads(threads)
    context = client_context(options.ca, cert=options.cert, key=options.key)
    with Client.connect(
        options.connect,
        context,
        model,
        client_store(options, model),
        workers=workers,
        threads=threads,
        deadline_seconds=options.deadline,
        server_name=options.server_name,
    ) as client:
        yield client
