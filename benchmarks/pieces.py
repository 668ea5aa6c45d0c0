"""Cutting a folder into pieces small enough to travel, and joining them again, exactly.

The files of the folder, one after another in the order of their names, are one stream of bytes; a piece is a range of
it. `manifest.json` names every file with its size and SHA-256, and every piece with its own. Joining checks the pieces
before anything is written, and the files after.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from deepreduce._files import read_json, sha256_of, write_json
from deepreduce.errors import DataError, problem

FORMAT, VERSION = "deepreduce.pieces", 1
MOST_BYTES = 53 * 2**20
"""Of a piece, unless told otherwise: below the 64 MiB that a transfer takes."""

_BLOCK = 2**20


def pack(folder: Path, out: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Cut a folder's files into pieces.

    Args:
        folder: with all its sub-folders; hidden files stay behind.
        out: for the pieces and `manifest.json`; made if missing. Pieces of an earlier call there are replaced.
        most_bytes: of one piece, at least 1.

    Returns:
        The manifest: `files[]{path, bytes, sha256}` and `pieces[]{name, bytes, sha256}`.

    Raises:
        DataError: if there is no file to pack.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
    if not paths or most_bytes < 1:
        raise DataError(
            problem("there must be files to pack", got=f"none in {folder.name}", remedy="name their folder")
        )
    out.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("piece-*.bin"), *out.glob("manifest.json")):
        old.unlink()
    files = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    ]
    pieces = []
    stream = _blocks(paths, most_bytes)
    for number, content in enumerate(stream):
        name = f"piece-{number:03d}.bin"
        state = hashlib.sha256()
        with (out / name).open("wb") as file:
            for block in content:
                file.write(block)
                state.update(block)
        pieces.append({"name": name, "bytes": (out / name).stat().st_size, "sha256": state.hexdigest()})
    manifest = {"format": FORMAT, "version": VERSION, "folder": folder.resolve().name, "files": files, "pieces": pieces}
    write_json(out / "manifest.json", manifest)
    return manifest


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _blocks(paths: list[Path], most_bytes: int) -> Iterator[Iterator[bytes]]:
    """Yield the stream piece by piece, each as blocks that are to be taken before the next piece."""
    total = sum(path.stat().st_size for path in paths)
    joined = _read(paths)
    rest = b""

    def piece(size: int) -> Iterator[bytes]:
        nonlocal rest
        while size:
            block = rest or next(joined)
            block, rest = block[:size], block[size:]
            size -= len(block)
            yield block

    for start in range(0, max(total, 1), most_bytes):
        yield piece(min(most_bytes, total - start))


def _read(paths: list[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                yield block


def join(pieces: Path, out: Path) -> Path:
    """Put the files of a packed folder together again.

    Args:
        pieces: holds `manifest.json` and every piece it names.
        out: the folder's own name is made below it. What stands there already, whole, is not written again.

    Returns:
        The folder.

    Raises:
        DataError: if the manifest is not one, a piece is missing or has another hash, or a file comes out otherwise.
    """
    manifest = _manifest(pieces)
    folder = out / manifest["folder"]
    if folder.is_dir() and all(_is_whole(folder / file["path"], file) for file in manifest["files"]):
        return folder
    for piece in manifest["pieces"]:
        path = pieces / piece["name"]
        if not _is_whole(path, piece):
            raise _bad("another hash" if path.exists() else "no such file", "bring it again", piece["name"])
    fresh = out / f".{manifest['folder']}.joining"
    shutil.rmtree(fresh, ignore_errors=True)
    stream = _read([pieces / piece["name"] for piece in manifest["pieces"]])
    rest = b""
    for file in manifest["files"]:
        path = fresh / file["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        left = file["bytes"]
        with path.open("wb") as target:
            while left:
                block = rest or next(stream, b"")
                if not block:
                    raise _bad("fewer bytes than the files have", "pack the folder again", "manifest.json")
                block, rest = block[:left], block[left:]
                left -= target.write(block)
        if not _is_whole(path, file):
            raise _bad("another hash after joining", "pack the folder again", file["path"])
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return folder


def _manifest(pieces: Path) -> dict[str, Any]:
    try:
        manifest = read_json(pieces / "manifest.json")
        files, parts = manifest["files"], manifest["pieces"]
        names = [manifest["folder"], *(file["path"] for file in files), *(piece["name"] for piece in parts)]
        inside = all(not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts for name in names)
        known = (manifest["format"], manifest["version"]) == (FORMAT, VERSION)
        if not (inside and known and files and all({"bytes", "sha256"} <= set(part) for part in (*files, *parts))):
            raise ValueError("fields are missing or lead elsewhere")
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise _bad(f"{type(error).__name__}: {error}", "pack the folder again", "manifest.json") from error
    return manifest


def _is_whole(path: Path, expected: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and sha256_of(path) == expected["sha256"]


def _bad(got: str, remedy: str, where: str) -> DataError:
    return DataError(problem("the pieces must be those that were packed", got=got, remedy=remedy, where=where))
