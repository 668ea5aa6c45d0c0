"""Writing and reading files so that a crash, a full disk or a damaged file loses nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ._json import parse_json
from .errors import RunError, problem

_LARGEST_JSON_BYTES = 64 * 2**20
_LONGEST_LINE_BYTES = 2**20


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name, flush to disk, rename.

    Raises:
        RunError: if the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush what was written there and rename it to `path`.

    Args:
        path: what is replaced.
        private: nobody but the owner may read it, from its first moment on; else the user's umask decides.

    Raises:
        RunError: if the disk is full or the folder cannot be written; the old file is then still in place.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        temporary.touch(0o600 if private else 0o666, exist_ok=False)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C as well: what was begun may be large, and secret
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        # safetensors reports a failed write as its own type, with the system's words in it
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full and not isinstance(error, OSError):
            raise
        got, again = why_not_written(error, path), "run the same command again"
        if full:
            got, remedy = "no space is left on the disk", f"free some space and {again}; what was finished is kept"
        elif _no_folder_above(path) is not None:
            remedy = f"name another place, or move that file away, and {again}"
        else:
            remedy = f"name another place, or make the folder writable, and {again}"
        raise RunError(problem("the file must be written whole", got=got, remedy=remedy, where=path)) from error


def reserve(descriptor: int, size: int) -> None:
    """Take the space of a file from the disk, so that a full one is an error now and not after the work.

    Where the system has no such call, the free space is compared, which another process may then use up.

    Raises:
        OSError: ENOSPC, EDQUOT or EFBIG: there is no room; or as of a write.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    space = os.fstatvfs(descriptor)
    if space.f_bavail * space.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def why_not_written(error: BaseException, path: Path) -> str:
    """Say what stood in the way of a file: what is there in place of a folder of its path, or the system's words."""
    blocking = _no_folder_above(path)
    if blocking is not None:
        return f"{blocking} is no folder"
    return getattr(error, "strerror", None) or str(error)


def _no_folder_above(path: Path) -> Path | None:
    """Return what stands where one of the folders of a path should be, None if nothing does."""
    for above in path.parents:
        with contextlib.suppress(OSError):  # of what may not be looked at nothing is known
            if os.path.lexists(above) and not above.is_dir():
                return above
    return None


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, keys in the order given, whole or not at all.

    Raises:
        RunError: if the value holds a NaN or an infinity, which JSON does not have; or as `write_bytes`.
    """
    write_bytes(path, (_dumps(value, path, indent=1) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; no NaN, no key twice, at most 64 MiB.

    Raises:
        RunError: if it is missing, no regular file, too large, or not a JSON object.
    """
    if not path.exists():
        raise RunError(problem("the file must exist", got="no file", remedy="check the path", where=path))
    try:
        if not path.is_file():  # a pipe or a device would block, or never end
            raise ValueError("no regular file")
        with path.open("rb") as file:
            content = file.read(_LARGEST_JSON_BYTES + 1)
        if len(content) > _LARGEST_JSON_BYTES:
            raise ValueError(f"larger than {_LARGEST_JSON_BYTES:,} bytes")
        value = parse_json(content)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not an object")
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(
            problem("the file must hold one JSON object", got=error, remedy="restore it, or remove it", where=path)
        ) from error
    return value


def check_format(
    value: Mapping[str, Any],
    name: str,
    version: int,
    path: Path,
    *,
    remedy: str = "use the file that this release wrote, or the release that wrote this file",
) -> None:
    """Check the `format` and `version` of one of our files.

    Args:
        value: what the file holds.
        name: the format that it must have.
        version: likewise.
        path: of the file, for the message.
        remedy: what the user can do about another one.

    Raises:
        RunError: if the file is of another kind or of a version that this release cannot read.
    """
    got = value.get("format"), value.get("version")
    if got != (name, version):
        raise RunError(
            problem(
                f"the file must be of format {name!r}, version {version}",
                got=f"format {got[0]!r}, version {got[1]!r}",
                remedy=remedy,
                where=path,
            )
        )


def move_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `NAME.damaged-N`, beside earlier ones, and return its new path."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(aside)


def open_to_others(path: Path) -> str:
    """Return the mode of a file or folder that others than its owner may read, write or enter: `0644`.

    Empty where nobody may, where nothing is there, and on systems without such modes.
    """
    if os.name != "posix" or not path.exists():
        return ""
    mode = stat.S_IMODE(path.stat().st_mode)
    return f"{mode:04o}" if mode & 0o077 else ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, value: Any) -> None:
    """Append one JSON value as a line; a last line that a crash cut short is cut off first.

    Raises:
        RunError: if the disk is full or the file cannot be written, or the value holds a NaN or an infinity.
    """
    line = _dumps(value, path) + "\n"
    try:
        with path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(line.encode())
    except OSError as error:
        raise RunError(
            problem("the history must be written", got=error, remedy="free some space and run again", where=path)
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line that a crash cut short is left out, as is everything from a damaged line on.

    Raises:
        RunError: if the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")  # splitlines knows more line ends
    except OSError as error:
        raise RunError(problem("the history must be readable", got=error, remedy="remove it", where=path)) from error
    values = []
    for line in lines:
        if not line:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if isinstance(value, dict):
            values.append(value)
    return values


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    start = max(0, end - _LONGEST_LINE_BYTES)
    file.seek(start)
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(start + tail.rfind(b"\n") + 1)


def _dumps(value: Any, path: Path, *, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RunError(
            problem(
                "every number in a file must be finite", got=error, remedy="report this with the command", where=path
            )
        ) from error
