"""Writing and reading files so that a crash, a full disk or a damaged file loses nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import RunError, problem

_LARGEST_JSON_BYTES = 64 * 2**20


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name, flush to disk, rename.

    Raises:
        RunError: if the disk is full or the folder cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, flush what was written there and rename it to `path`.

    Raises:
        RunError: if the disk is full or the folder cannot be written; the old file is then still in place.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        # safetensors reports a failed write as its own type, with the system's words in it
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if full or isinstance(error, OSError):
            raise RunError(
                problem(
                    "the file must be written whole",
                    got="no space is left on the disk" if full else f"{type(error).__name__}: {error}",
                    remedy="free some space and run the same command again; what was finished is kept"
                    if full
                    else "make the folder writable and run the same command again",
                    where=path,
                )
            ) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys off, indented, atomically."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: if it is missing, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON_BYTES:
            raise ValueError(f"larger than {_LARGEST_JSON_BYTES:,} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not an object")
    except FileNotFoundError:
        raise RunError(problem("the file must exist", got="no file", remedy="check the path", where=path)) from None
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(
            problem("the file must hold one JSON object", got=error, remedy="restore it, or remove it", where=path)
        ) from error
    return value


def check_format(value: Mapping[str, Any], name: str, version: int, path: Path) -> None:
    """Check the `format` and `version` of one of our files.

    Raises:
        RunError: if the file is of another kind or of a version that this release cannot read.
    """
    got = value.get("format"), value.get("version")
    if got != (name, version):
        raise RunError(
            problem(
                f"the file must be of format {name!r}, version {version}",
                got=f"format {got[0]!r}, version {got[1]!r}",
                remedy="use the file that this release wrote, or the release that wrote this file",
                where=path,
            )
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, value: Any) -> None:
    """Append one JSON value as a line.

    Raises:
        RunError: if the disk is full or the file cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RunError(
            problem("the history must be written", got=error, remedy="free some space and run again", where=path)
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if isinstance(value, dict):
            values.append(value)
    return values
