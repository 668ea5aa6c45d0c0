"""What the store asks of the operating system: locks, durability, space, and the one step that consumes a file."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from deepreduce._files import reserve as take_space
from deepreduce.errors import problem

from ._errors import BundleDamaged, StoreError, StoreFull

if os.name == "posix":
    import fcntl
    import resource

_LOCK_SECONDS = 60.0
"""How long to wait for the lock of the folder; it is held for a few system calls only."""

_SPARE_FILES = 32
"""Descriptors for whatever else the process opens meanwhile."""

_LOCAL = "put the folder on a local file system of this machine (ext4, xfs, btrfs, tmpfs, APFS), not on a network one"


def check_platform() -> None:
    """Raise StoreError where files cannot be locked, or cannot be removed while they are open."""
    if os.name != "posix":
        raise StoreError(
            problem(
                "a bundle store needs POSIX file locks",
                got=f"the platform {os.name!r}",
                remedy="run the parties on Linux or macOS, or under WSL",
            )
        )


@contextlib.contextmanager
def explained(must: str, where: Path) -> Iterator[None]:
    """Turn an OSError into StoreFull or StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(where) from error
        raise StoreError(
            problem(must, got=error, remedy="check the folder's rights and its disk, then try again", where=where)
        ) from error


def disk_full(where: Path, wanted_bytes: int | None = None) -> StoreFull:
    """Build the error for a disk that has no room."""
    wanted = f" for {wanted_bytes:,} bytes" if wanted_bytes is not None else ""
    return StoreFull(
        problem(
            "the disk must have room for a whole bundle before the work for it begins",
            got=f"no space left{wanted}",
            remedy="free some space, use or discard prepared bundles, or choose a folder on another disk",
            where=where,
        )
    )


def check_private(folder: Path, status: os.stat_result) -> None:
    """Raise StoreError unless the folder belongs to this user and nobody else can enter it."""
    if not stat.S_ISDIR(status.st_mode):
        raise StoreError(
            problem("the store must be a folder", got="a file", remedy="choose another path", where=folder)
        )
    if status.st_uid != os.geteuid():
        raise StoreError(
            problem(
                "the store must belong to the user who runs this",
                got=f"a folder of user {status.st_uid}",
                remedy="choose a folder of your own; bundles hold secrets",
                where=folder,
            )
        )
    if status.st_mode & 0o077:
        raise StoreError(
            problem(
                "nobody else may read the store: bundles hold secrets",
                got=f"a folder of mode {stat.S_IMODE(status.st_mode):04o}",
                remedy=f"chmod 700 '{folder}'",
                where=folder,
            )
        )


def sync(descriptor: int) -> None:
    """Return when the file or directory is on the disk, so far as the disk tells the truth."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves the data in the drive's cache
    if full is not None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def try_lock(descriptor: int, where: Path) -> bool:
    """Lock a file for this open description alone; False if another one holds it.

    Raises:
        StoreError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            problem("the file system must have file locks", got=error, remedy=_LOCAL, where=where)
        ) from error
    return True


def unlock(descriptor: int) -> None:
    """Give a lock back, also where a forked child still holds a copy of the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[int]:
    """Hold the lock of the folder: what is counted, swept, created or renamed under it is done by one at a time.

    Taking does not need it.

    Returns:
        The open lock, a file of this user's; see `room.Room` for what is in it.
    """
    path = folder / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not try_lock(descriptor, path):
            if time.monotonic() > deadline:
                raise StoreError(
                    problem(
                        f"the lock of the store must become free within {_LOCK_SECONDS:.0f} seconds",
                        got="another process holds it",
                        remedy="look for a stopped process that uses the folder, and continue or end it",
                        where=path,
                    )
                )
            time.sleep(0.002)
        try:
            yield descriptor
        finally:
            unlock(descriptor)
    finally:
        os.close(descriptor)


def room_for_files(wanted: int) -> int:
    """Return how many more files this process can have open, `wanted` at most; its soft limit is raised for that.

    What is open already is counted, and some descriptors are left for everything else.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = _open_files() + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and used + wanted > soft:
        more = used + wanted if hard == resource.RLIM_INFINITY else min(used + wanted, hard)
        if more > soft:
            with contextlib.suppress(ValueError, OSError):  # macOS has another limit besides
                resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
                soft = more
    return wanted if soft == resource.RLIM_INFINITY else max(0, min(wanted, soft - used))


def check_room_for_files(count: int, where: Path) -> None:
    """Raise StoreError unless so many more files can be open: before any bundle is consumed.

    Raises:
        StoreError: with the system's limit.
    """
    room = room_for_files(count)
    if room < count:
        raise StoreError(
            problem(
                f"{count:,} bundles at once need as many open files",
                got=f"room for {room:,} within the limit of this process",
                remedy="raise it with ulimit -n, or take fewer at once",
                where=where,
            )
        )


def _open_files() -> int:
    for listed in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return sum(1 for _ in Path(listed).iterdir())
    return 0


@contextlib.contextmanager
def opened_directory(path: Path) -> Iterator[int]:
    """Open a directory, so that what is removed or renamed and what is synchronised is the same one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def regular_files(directory: int) -> list[tuple[str, os.stat_result]]:
    """Return name and status of every regular file in a directory; no links, pipes or folders."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process took it since
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    found.append((entry.name, status))
    return found


def create_locked(directory: int, file_name: str, size: int, where: Path) -> io.FileIO:
    """Create a file that only its owner can read, locked by this process and as long as it will be."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = io.FileIO(os.open(file_name, flags, 0o600, dir_fd=directory), "r+")
    try:
        if not try_lock(file.fileno(), where):
            raise StoreError(
                problem(
                    "a new file must be free", got="a locked one", remedy="report this with the command", where=where
                )
            )
        os.ftruncate(file.fileno(), size)
    except BaseException:
        os.unlink(file_name, dir_fd=directory)
        file.close()
        raise
    return file


def reserve(file: io.FileIO, size: int, where: Path) -> None:
    """Reserve the space of a file.

    Raises:
        StoreFull: the disk has no room.
    """
    try:
        take_space(file.fileno(), size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise disk_full(where, size) from error
        raise


def claim(directory: int, file_name: str, where: Path) -> io.FileIO | None:
    """Remove a file's name and keep the file open: of all that try, in any process, one gets it.

    Nothing may be read from it before the directory has been synchronised.

    Returns:
        The open file, which has no name any more; None if another one got it, or if it is not there.

    Raises:
        BundleDamaged: a link, a pipe or a folder stands there; it is left alone.
        StoreError: the file system cannot do what this rests on; the file is then gone for all.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for its other end
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(file_name, flags, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _no_regular_file(where) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_regular_file(where)
    file = io.FileIO(descriptor, "r")
    try:
        if try_lock(file.fileno(), where) and os.fstat(file.fileno()).st_nlink:  # 0: removed between open and lock
            os.unlink(file_name, dir_fd=directory)
            if os.fstat(file.fileno()).st_nlink:
                raise StoreError(
                    problem(
                        "a removed bundle must be gone",
                        got="a file that has another name still: a hard link, or a network file system",
                        remedy=f"remove the other name, it must never be used; {_LOCAL}",
                        where=where,
                    )
                )
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _no_regular_file(where: Path) -> BundleDamaged:
    return BundleDamaged(
        problem(
            "a bundle must be a regular file",
            got="a link, a pipe, a device or a folder",
            remedy="find out who put it there and remove it; nothing was read from it",
            where=where,
        )
    )
