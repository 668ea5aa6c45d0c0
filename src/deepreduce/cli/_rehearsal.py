"""Both parties of private inference on this machine: the server as a process of its own, over TLS on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._cores import available_cores
from ..errors import RunError, problem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .._export import Exported
    from ..private.service import Inference, Preparation


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """What came of some images.

    Attributes:
        relus: of the network, for one image.
        prepared: the offline phase of all images.
        answers: one per image; each was its own online phase.
        labels: what the client learnt.
        expected: what the plain-integer twin says.
    """

    relus: int
    prepared: Preparation
    answers: list[Inference]
    labels: NDArray[np.int64]
    expected: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Return bytes, round trips and seconds per image, offline and online apart."""
        count, offline = len(self.answers), self.prepared.traffic
        return {
            "relus": self.relus,
            "images": count,
            "equal_to_twin": int((self.labels == self.expected).sum()),
            "offline": {
                "seconds": self.prepared.seconds / count,
                "bytes": (offline.sent_bytes + offline.received_bytes) / count,
                "stored_bytes": self.prepared.stored_bytes,
            },
            "online": {
                "seconds": sorted(answer.seconds for answer in self.answers)[count // 2],
                "bytes": self.answers[0].traffic.sent_bytes + self.answers[0].traffic.received_bytes,
                "round_trips": self.answers[0].traffic.turns,
            },
        }


def rehearse(files: Exported, pixels: NDArray[np.uint8], *, folder: Path) -> Rehearsal:
    """Classify images privately, one after the other, and compute the same with the twin.

    Args:
        files: of `deepreduce.export`.
        pixels: uint8 [images, channels, height, width].
        folder: for bundles, certificate and the server's log.

    Raises:
        RunError: the server does not start.
        DeepReduceError: see `private.service.Client`.
    """
    import numpy as np

    from ..private.deployment import load_server
    from ..private.service import Client
    from ..private.store import BundleStore
    from ..private.twin import Twin
    from ..private.wire import client_context

    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = new_certificate(folder)
    model = load_server(files.server)
    store = BundleStore(folder / "bundles", program=model.client.digest, role="client")
    with serving(files.server, certificate, key, folder) as address:
        context, cores = client_context(certificate), available_cores()
        with Client.connect(address, context, model.client, store, workers=cores, threads=cores) as client:
            prepared = client.prepare(len(pixels))
            answers = [client.infer(image[None]) for image in pixels]
    labels = np.array([answer.labels[0] for answer in answers])
    expected = Twin(model.program).run(model.client.normalise(pixels)).labels
    return Rehearsal(model.client.about.relus, prepared, answers, labels, expected)


def new_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for this machine and its key; those of an earlier rehearsal go, as they run out in 30 days."""
    from ..private.wire import self_signed

    for name in ("cert.pem", "key.pem"):
        (folder / name).unlink(missing_ok=True)
    return self_signed(folder, ["127.0.0.1"])


@contextmanager
def serving(file: Path, certificate: Path, key: Path, folder: Path) -> Iterator[str]:
    """Run `deepreduce serve` on a free port of loopback; give its address, and end it afterwards."""
    log = folder / "server.log"
    typed = [sys.executable, "-m", "deepreduce.cli", "serve", str(file), "--listen", "127.0.0.1:0"]
    typed += ["--cert", str(certificate), "--key", str(key), "--store", str(folder / "bundles")]
    typed += ["--threads", str(max(1, available_cores() // 2))]  # PyTorch stalls where both parties want all cores
    with log.open("w") as output, subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=output, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            if not said.startswith("listening on "):
                raise RunError(
                    problem(
                        "the server must start",
                        got=log.read_text(encoding="utf-8", errors="replace").strip()[-300:] or "nothing",
                        remedy="look into its log",
                        where=log,
                    )
                )
            yield said.removeprefix("listening on ").strip()
        finally:
            server.terminate()
