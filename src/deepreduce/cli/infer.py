"""`deepreduce infer`: the client's party."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._console import console, print_json
from ._private import add_connection, connected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_SHOWN = 5
"""Logits of so many classes are printed, the largest."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the clients' file, from deepreduce export")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files of the network's input size")
    parser.add_argument(
        "--reveal",
        choices=["label", "logits"],
        default="label",
        help="what to learn (default label); logits if the server allows it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_connection(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from ..private.deployment import load_client

    model = load_client(options.file)
    pixels = read_images(options.images, model.public.input.shape)  # told before anything is spent
    with connected(options, model) as client:
        before = client.traffic
        answer = client.infer(pixels, reveal=options.reveal)
        offline = (client.traffic - before) - answer.traffic
    names = [model.about.classes[label] for label in answer.labels]
    if options.json:
        print_json(
            {
                "images": [
                    {"image": str(path), "label": int(label), "class": name, **_logits(answer.logits, index)}
                    for index, (path, label, name) in enumerate(zip(options.images, answer.labels, names, strict=True))
                ],
                "online": {
                    "seconds": answer.seconds,
                    "sent_bytes": answer.traffic.sent_bytes,
                    "received_bytes": answer.traffic.received_bytes,
                    "round_trips": answer.traffic.turns,
                },
                "before": {"sent_bytes": offline.sent_bytes, "received_bytes": offline.received_bytes},
            }
        )
        return 0
    screen = console()
    for index, (path, name) in enumerate(zip(options.images, names, strict=True)):
        screen.print(f"{path}: {name}", markup=False, soft_wrap=True)
        if answer.logits is not None:
            best = answer.logits[index].argsort()[::-1][:_SHOWN]
            shown = ", ".join(f"{model.about.classes[label]} {answer.logits[index, label]:.3f}" for label in best)
            more = f", and {len(model.about.classes) - _SHOWN} more with --json" if len(best) == _SHOWN else ""
            screen.print(f"  logits: {shown}{more}", markup=False, soft_wrap=True)
    screen.print(
        f"online: {answer.seconds:.3g} s, {answer.traffic.sent_bytes / 1e6:.2f} MB sent, "
        f"{answer.traffic.received_bytes / 1e6:.2f} MB received, {answer.traffic.turns} round trips"
    )
    return 0


def _logits(logits: NDArray[np.float64] | None, index: int) -> dict[str, Any]:
    return {} if logits is None else {"logits": logits[index].tolist()}


def read_images(paths: list[Path], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read image files: uint8 [images, channels, height, width].

    Args:
        paths: of the files, at least one.
        shape: channels, height and width that the network takes.

    Raises:
        DataError: a file cannot be read, or they are of another size.
    """
    from ..data.decode import Batch, decode
    from ..errors import DataError, problem

    for path in paths:
        if not path.is_file():
            raise DataError(
                problem(
                    "an image is a file",
                    got="a folder" if path.is_dir() else "nothing of this name",
                    remedy="correct the path; all files of a folder are named as FOLDER/*",
                    where=path,
                )
            )
    pixels = decode([Batch(list(paths), lambda index: str(paths[index]))], len(paths), split="images")[0]
    if pixels.shape[1:] != shape:
        wanted, came = (f"{'x'.join(map(str, size))} (channels x height x width)" for size in (shape, pixels.shape[1:]))
        raise DataError(
            problem(
                f"the network takes images of {wanted}",
                got=came,
                remedy="resize the images, and save them as greyscale for 1 channel or RGB for 3",
                where=paths[0],
            )
        )
    return pixels
