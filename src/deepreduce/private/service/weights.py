"""The folder of a server's transformed weights: one sub-folder for each network's weights, held while it is served.

Servers of networks with the same public program share a store. Each keeps the weights that it read, whatever another
one writes there: its sub-folder is named by their digest, and a lock says that it is in use. What nobody holds is
removed when another network of the same program is served.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..._files import open_to_others
from ...errors import RunError, problem
from ..deployment import ServerModel
from ..homomorphic import PreparedWeights, prepare_weights

if os.name == "posix":  # elsewhere the store says that it needs such locks
    import fcntl

log = logging.getLogger("deepreduce.server")

_LOCK = ".lock"

_NAME = 32
"""Characters of a digest in a folder's name."""


class PreparedFolder:
    """All weights of a model, transformed; the first time that takes seconds to minutes, later they are mapped.

    Args:
        model: the server's file.
        digest: of its weights, in hexadecimal.
        folder: made for its owner alone, and refused if it is there and others can enter it.
        progress: called with (layer, layers).

    Attributes:
        weights: by the tensor that a layer makes.

    Raises:
        RunError: the folder cannot be written, or is open to others.
    """

    def __init__(
        self, model: ServerModel, digest: str, folder: Path, progress: Callable[[int, int], None] | None = None
    ) -> None:
        program = folder / model.client.digest.hex()[:_NAME]
        own = program / digest[:_NAME]
        with _explained(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not mended: it is the caller's and may hold other things. Who can write there could put another one in.
            if mode := open_to_others(folder):
                raise RunError(
                    problem(
                        "nobody else may enter the folder of the weights",
                        got=f"mode {mode}",
                        remedy=f"chmod 700 '{folder}', or choose another",
                        where=folder,
                    )
                )
            _own(program)
            turn = _open_lock(program)
            try:  # one server at a time makes its folder and clears up
                fcntl.flock(turn, fcntl.LOCK_EX)
                self._lock = _hold(own)
                for other in program.iterdir():
                    if other.name not in (own.name, _LOCK):
                        _remove_unused(other)
            finally:
                os.close(turn)
        try:
            self.weights = _prepare(model, own, progress)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the folder free. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _prepare(
    model: ServerModel, folder: Path, progress: Callable[[int, int], None] | None
) -> dict[int, PreparedWeights]:
    layout, found = model.client.layout, {}
    for number, job in enumerate(layout.jobs):
        if progress is not None:
            progress(number, len(layout.jobs))
        weight = model.program.weights[job.step.output].weight
        assert weight is not None  # check_weights has made sure
        found[job.step.output] = prepare_weights(
            job.parameters,
            job.plan.plan,
            job.plan.fit_weights(weight),
            weight_bits=layout.weight_bits,
            file=folder / f"{job.step.output}.ntt",
        )
    if progress is not None:
        progress(len(layout.jobs), len(layout.jobs))
    return found


def _own(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)


def _hold(folder: Path) -> int:
    """Make a folder of weights and lock it together with other servers of the same; return the lock."""
    _own(folder)
    lock = _open_lock(folder)
    try:
        if _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):  # nobody else writes here
            for left in folder.glob(".*.ntt.*"):  # by a server that was killed
                left.unlink(missing_ok=True)
        fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _remove_unused(other: Path) -> None:
    """Remove the weights of a network that no server holds, and what is no such folder; what cannot be stays."""
    try:
        if other.is_symlink() or not other.is_dir():
            other.unlink(missing_ok=True)
            return
        lock = _open_lock(other)
        try:
            if _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(other)
        finally:
            os.close(lock)
    except OSError as error:
        log.warning("weights that no server uses could not be removed: %s", error)


def _open_lock(folder: Path) -> int:
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(lock, 0o600)
    return lock


def _locked(lock: int, how: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(lock, how)
        return True
    return False


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            problem("the folder of the weights must be writable", got=error, remedy="choose another", where=folder)
        ) from error
