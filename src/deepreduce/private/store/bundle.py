"""A taken bundle: a file without a name, which nobody else can open and which is gone when this process is."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from deepreduce.errors import problem

from ._errors import BundleDamaged, StoreError
from .format import BundleName, Header, Role, Section, decode

_PIECE_BYTES = 1 << 20


class Bundle:
    """What was prepared for one image. Made by `BundleStore.take`; the file has been consumed before this exists.

    It can be neither copied nor pickled, and a forked child cannot use its parent's. Use it as a context manager.

    Attributes:
        name: of the bundle.
        meta: what its writer noted.
        created_seconds: when it was written, seconds since 1970 by the clock of that moment.
        sections: dtype and shape of every section.
    """

    def __init__(self, file: io.FileIO, path: Path, header: Header) -> None:
        self.name = header.name
        self.meta: dict[str, Any] = header.meta
        self.created_seconds = header.created_microseconds / 1e6
        self.sections: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]] = MappingProxyType(
            {one.name: (one.dtype, one.shape) for one in header.sections}
        )
        self._sections = {one.name: one for one in header.sections}
        self._file = file
        self._path = path
        self._map: mmap.mmap | None = None
        self._process = os.getpid()

    def array(self, section: str, *, load: bool = False) -> NDArray[Any]:
        """Return a section as a read-only array.

        Args:
            section: its name.
            load: read it into memory and compare its CRC-32, instead of mapping the file, which costs nothing until
                the array is read and compares nothing. 500 MB from the page cache take 0.2 s in memory that the
                process has used before and up to 1.2 s in fresh memory; mapped and read once, 0.13 s. A mapped array
                stays valid after `close`; the disk space is free when the last of them is forgotten.

        Raises:
            BundleDamaged: the section cannot be read, or is not what was written.
            StoreError: no such section, a closed bundle, or one of another process.
        """
        self._check_usable()
        if section not in self._sections:
            raise StoreError(
                problem(
                    "a section must be one of the bundle's",
                    got=repr(section)[:80],
                    remedy=f"choose among {', '.join(list(self._sections)[:20])}",
                )
            )
        place = self._sections[section]
        if place.length == 0:
            values = np.empty(place.shape, place.dtype)
        elif load:
            values = self._load(place)
        else:
            if self._map is None:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            count = place.length // place.dtype.itemsize
            values = np.frombuffer(self._map, place.dtype, count, place.offset).reshape(place.shape)
        values.flags.writeable = False
        return values

    def check(self) -> None:
        """Read every section and compare its CRC-32, whatever its size: some megabytes of memory at most.

        Raises:
            BundleDamaged: a section cannot be read, or is not what was written.
            StoreError: a closed bundle, or one of another process.
        """
        self._check_usable()
        piece = memoryview(bytearray(_PIECE_BYTES))
        for place in self._sections.values():
            self._read(place, lambda done, length=place.length: piece[: length - done])  # type: ignore[misc]

    def close(self) -> None:
        """Give the disk space back; calling it again does nothing."""
        if self._map is not None:
            with contextlib.suppress(BufferError):  # arrays still look into it and will close it
                self._map.close()
            self._map = None
        self._file.close()

    def _load(self, place: Section) -> NDArray[Any]:
        values = np.empty(place.shape, place.dtype)
        view = values.reshape(-1).view(np.uint8).data
        # Pieces are so small that the checksum finds them in the cache.
        self._read(place, lambda done: view[done : done + _PIECE_BYTES])
        return values

    def _read(self, place: Section, into: Callable[[int], memoryview]) -> None:
        """Read a section, from each byte on into the memory that is given for it, and compare its CRC-32."""
        crc32 = done = 0
        while done < place.length:
            piece = into(done)
            try:
                got = os.preadv(self._file.fileno(), [piece], place.offset + done)
            except OSError as error:
                raise damaged(error, self._path) from error
            if got == 0:
                raise damaged(f"section {place.name!r} ends after {done:,} bytes", self._path)
            crc32 = zlib.crc32(piece[:got], crc32)
            done += got
        if crc32 != place.crc32:
            raise damaged(f"the checksum of section {place.name!r} does not fit", self._path)

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise StoreError(
                problem(
                    "a bundle belongs to the process that took it",
                    got="another process, forked from it",
                    remedy="take the bundle in the process that uses it",
                )
            )
        if self._file.closed:
            raise StoreError(
                problem("the bundle must be open", got="a closed one", remedy="take another; this one is used up")
            )

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise StoreError(
            problem(
                "a bundle must not be copied or pickled",
                got="a copy",
                remedy="take it in the process that uses it, and pass the arrays that are needed",
            )
        )

    def __repr__(self) -> str:
        return f"<Bundle {self.name}>"


def open_taken(file: io.FileIO, path: Path, name: BundleName, program: bytes, role: Role) -> Bundle:
    """Read a consumed file's header and check that it is the bundle it was taken as.

    Raises:
        BundleDamaged: it is not; the file is closed and thereby gone.
    """

    def read(offset: int, length: int) -> bytes:
        return os.pread(file.fileno(), length, offset)

    try:
        header = decode(read, os.fstat(file.fileno()).st_size)
        for what, got, expected in (
            ("role", header.role, role),
            ("program", header.program.hex(), program.hex()),
            ("name", str(header.name), str(name)),
        ):
            if got != expected:
                raise ValueError(f"the {what} {got}, where {expected} belongs")
    except (ValueError, OSError) as error:
        file.close()
        raise damaged(error, path) from error
    except BaseException:
        file.close()
        raise
    return Bundle(file, path, header)


def damaged(got: object, path: Path) -> BundleDamaged:
    """Build the error for a bundle that was removed because it cannot be trusted."""
    return BundleDamaged(
        problem(
            "a bundle must be what its writer left",
            got=got,
            remedy="take another bundle or prepare one; this one was removed and will not be served again",
            where=path,
        )
    )
