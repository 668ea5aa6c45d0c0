"""The folder of bundles: create, take, count, expire."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepreduce.errors import problem

from ._errors import BundleDamaged, BundleGone, StoreError, StoreFull
from ._system import (
    check_platform,
    check_private,
    check_room_for_files,
    claim,
    create_locked,
    explained,
    folder_lock,
    opened_directory,
    regular_files,
    reserve,
    sync,
)
from .bundle import Bundle, open_taken
from .format import PROGRAM_BYTES, ROLES, BundleName, Header, Role, Section, encode_meta, file_bytes, lay_out
from .room import Room, note
from .writer import BundleWriter, check_free

_PLACE = re.compile(r"[0-9a-f]{64}-(client|server)")
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}-[0-9]{1,15}\.[0-9a-f]{16}\.partial")
_DAY_SECONDS = 86_400.0

_LARGE_BYTES = 1 << 32
"""Bundles up to this are made wherever the disk has room; of a ResNet18 one takes 31 MB."""

Sections = Mapping[str, tuple[Any, tuple[int, ...]]]


class BundleStore:
    """Bundles of one program and role in a folder; any number of processes and threads may use it at once.

    A bundle is taken at most once, whatever crashes when: see the description of the package.

    Args:
        folder: created with mode 0700 if missing; must be this user's alone, and on a local file system. One folder
            serves all programs and both roles, each in a sub-folder of its own. Keep it out of backups, images and
            snapshots: a bundle that is restored can be taken again, and nothing here can notice.
        program: digest of the deployment, 32 bytes; see `private.deployment`.
        role: "client" or "server".
        limit_bytes: most bytes of all bundles in the folder, of every program and role, those being written
            included and those taken not; None for no limit but the disk.
        keep_days: bundles of the folder, of every program and role, that were written longer ago are removed by
            `expire`, which opening calls. By the files' times and the clock: one that is set back keeps bundles
            longer, one that is set forward removes them early, and neither makes one come back.

    Raises:
        StoreError: an argument out of range, or a folder that others can read or that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        program: bytes,
        role: Role,
        limit_bytes: int | None = None,
        keep_days: float = 30,
    ) -> None:
        check_platform()
        _check_arguments(program, role, limit_bytes, keep_days)
        self.folder = Path(folder)
        self.program = program
        self.role: Role = role
        self.limit_bytes = limit_bytes
        self.keep_days = keep_days
        self._place = self.folder / f"{program.hex()}-{role}"
        self._room = Room()
        self._known: deque[BundleName] = deque()  # oldest first; what was made since is newer, what was taken is gone
        with explained("the folder of the store must be usable", self.folder):
            if not self.folder.is_dir():
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                self.folder.mkdir(mode=0o700, exist_ok=True)
            check_private(self.folder, self.folder.stat())
            self._place.mkdir(mode=0o700, exist_ok=True)
            check_private(self._place, self._place.lstat())
            with folder_lock(self.folder):
                self._remove_garbage()
        self.expire()

    def create(self, name: BundleName, sections: Sections, meta: dict[str, Any] | None = None) -> BundleWriter:
        """Begin to write a bundle; its space is reserved at once.

        Args:
            name: a new one; a name that was given before must never be given again.
            sections: dtype and shape of every section. Integers and floats; stored little-endian.
            meta: a JSON object of at most 1 MiB.

        Returns:
            The writer; use it as a context manager.

        Raises:
            StoreFull: the limit has no room for it; or there is none, and a bundle of more than 4 GiB would take more
                than half of what is free on the disk.
            StoreError: a section or meta data that the format does not have, or a name that is there.
        """
        noted = {} if meta is None else meta
        header = Header(self.program, self.role, name, 0, noted, _laid_out(sections, noted))
        size = file_bytes(header.sections)
        temporary = f".{name}.{secrets.token_hex(8)}.partial"
        with explained("a bundle must be created", self._place):
            # Counting, creating and locking are one step for those who count and those who sweep.
            with opened_directory(self._place) as directory, folder_lock(self.folder) as lock:
                check_free(directory, name, self._place)
                self._check_limit(lock, size)
                note(lock, size)
                file = create_locked(directory, temporary, size, self._place)
            writer = BundleWriter(file, self.folder, self._place, temporary, header)
            try:
                reserve(file, size, self._place)
            except BaseException:
                writer.abandon()
                raise
        return writer

    def check_room(self, bundles: int, sections: Sections, meta: dict[str, Any] | None = None) -> None:
        """Refuse bundles that have no room now, before there is work in them; `create` reserves it for each.

        Args:
            bundles: how many.
            sections, meta: as for `create`.

        Raises:
            StoreFull: the limit, or without one the disk, has no room for so many.
            StoreError: a section or meta data that the format does not have.
        """
        size = bundles * file_bytes(_laid_out(sections, {} if meta is None else meta))
        with explained("bundles must have room", self._place):
            room = shutil.disk_usage(self.folder).free
            if self.limit_bytes is not None:
                with folder_lock(self.folder) as lock:
                    there = self._room.at_most(lock, self.limit_bytes - size, self.bytes)
                room = min(room, self.limit_bytes - there)
            if size > room:
                raise StoreFull(
                    problem(
                        f"{bundles} bundles that are prepared together must have room before they are begun",
                        got=f"{size:,} bytes, and room for {max(0, room):,}",
                        remedy="prepare fewer, use or discard prepared ones, or raise the limit",
                        where=self.folder,
                    )
                )

    def take(self, name: BundleName) -> Bundle:
        """Consume a bundle, durably, and open it.

        Raises:
            BundleGone: it was taken, discarded or expired, or was never there.
            BundleDamaged: it is not what its writer left. It is consumed all the same.
            StoreError: the folder fails. The bundle is then untouched or gone, and nothing of it was read.
        """
        path = self._place / name.file_name
        with explained("a bundle must be taken", path), opened_directory(self._place) as directory:
            file = claim(directory, name.file_name, path)
            if file is None:
                raise BundleGone(
                    problem(
                        "a bundle can be taken once",
                        got=f"{name}, which was taken, discarded or expired, or never was here",
                        remedy="take another one that both parties have, or prepare more",
                        where=self._place,
                    )
                )
            _make_durable(directory, [file])
        return open_taken(file, path, name, self.program, self.role)

    def take_next(self, count: int = 1, *, damaged: Callable[[BundleDamaged], object] | None = None) -> list[Bundle]:
        """Consume the oldest bundles, of whatever session, and open them.

        Args:
            count: how many at most.
            damaged: told of each damaged bundle, which is consumed and passed over.

        Returns:
            The bundles, oldest first (by the time of writing, then by name, as the folder was when it was last read);
            fewer than `count`, or none, if no more are there.

        Raises:
            BundleDamaged: damaged bundles were met and no whole one.
            StoreError: as `take`, or so many files cannot be open at once; nothing was consumed then.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise StoreError(
                problem("the number of bundles must be an integer of at least 1", got=repr(count), remedy="ask for one")
            )
        taken: list[Bundle] = []
        failures: list[BundleDamaged] = []
        try:
            with explained("bundles must be taken", self._place), opened_directory(self._place) as directory:
                fresh = len(self._known) < count
                if fresh:
                    self._known = deque(_oldest_first(directory))
                check_room_for_files(min(count, len(self._known)), self._place)
                while len(taken) < count:
                    claimed = self._claim_some(directory, count - len(taken))
                    if not claimed and fresh:
                        break
                    if not claimed:  # others took what we knew of
                        self._known, fresh = deque(_oldest_first(directory)), True
                    for name, file in claimed:
                        try:
                            taken.append(open_taken(file, self._place / name.file_name, name, self.program, self.role))
                        except BundleDamaged as error:
                            failures.append(error)
            for failure in failures:
                if damaged is not None:
                    damaged(failure)
            if failures and not taken:
                raise failures[0]
        except BaseException:
            for bundle in taken:
                bundle.close()
            raise
        return taken

    def count(self, at_most: int | None = None) -> int:
        """Return how many bundles of this program and role can be taken.

        Args:
            at_most: stop there; for all of them every name in the folder is read.
        """
        found = 0
        with explained("the folder must be readable", self._place), os.scandir(self._place) as entries:
            for entry in entries:
                if found == at_most:
                    break
                found += BundleName.of_file(entry.name) is not None and entry.is_file(follow_symlinks=False)
        return found

    def names(self) -> list[BundleName]:
        """Return the bundles of this program and role that can be taken, oldest first."""
        with explained("the folder must be readable", self._place), opened_directory(self._place) as directory:
            return _oldest_first(directory)

    def sessions(self) -> set[bytes]:
        """Return the sessions of which bundles of this program and role can be taken."""
        with explained("the folder must be readable", self._place), os.scandir(self._place) as entries:
            return {name.session for entry in entries if (name := BundleName.of_file(entry.name)) is not None}

    def expire(self) -> int:
        """Remove the bundles that are older than `keep_days`, of every program and role; return how many."""
        oldest = time.time() - self.keep_days * _DAY_SECONDS

        def is_old(file_name: str, status: os.stat_result) -> bool:
            return BundleName.of_file(file_name) is not None and status.st_mtime < oldest

        with explained("old bundles must be removed", self.folder):
            return sum(_remove(place, is_old) for place in self._places())

    def discard(self, session: bytes) -> int:
        """Remove all bundles of a session, of this program and role; return how many.

        Bundles that are being written are not touched; abandon them first.
        """
        BundleName(session, 0)  # checks the type and the length

        def is_of_session(file_name: str, _: os.stat_result) -> bool:
            name = BundleName.of_file(file_name)
            return name is not None and name.session == session

        with explained("bundles must be removed", self._place):
            return _remove(self._place, is_of_session)

    def _claim_some(self, directory: int, count: int) -> list[tuple[BundleName, io.FileIO]]:
        """Consume up to `count` of those that are known, with one synchronisation for all."""
        claimed: list[tuple[BundleName, io.FileIO]] = []
        try:
            while len(claimed) < count:
                try:
                    name = self._known.popleft()
                except IndexError:  # other threads may take from it, too
                    break
                file = claim(directory, name.file_name, self._place / name.file_name)
                if file is not None:
                    claimed.append((name, file))
        except BaseException:
            for _, file in claimed:
                file.close()
            raise
        if claimed:
            _make_durable(directory, [file for _, file in claimed])
        return claimed

    def _check_limit(self, lock: int, size: int) -> None:
        if self.limit_bytes is None:
            free = shutil.disk_usage(self.folder).free
            if size > max(_LARGE_BYTES, free // 2):  # a stranger's file may ask for any size
                raise StoreFull(
                    problem(
                        "without a limit of the store one bundle must take at most half of what is free on the disk",
                        got=f"{size:,} bytes of {free:,}",
                        remedy="free some space, or give --store-limit if you trust the model's file",
                        where=self.folder,
                    )
                )
            return
        there = self._room.at_most(lock, self.limit_bytes - size, self.bytes)
        if there + size > self.limit_bytes:
            raise StoreFull(
                problem(
                    f"the bundles in the folder must stay within {self.limit_bytes:,} bytes",
                    got=f"{there:,} bytes there and {size:,} more",
                    remedy="use or discard prepared bundles, or raise the limit",
                    where=self.folder,
                )
            )

    def _remove_garbage(self) -> None:
        """Remove the temporary files whose writers are dead: those whose lock is free. Under the folder's lock."""
        for place in self._places():
            _remove(place, lambda file_name, _: _TEMPORARY.fullmatch(file_name) is not None)

    def _places(self) -> list[Path]:
        with os.scandir(self.folder) as entries:
            return [
                self.folder / entry.name
                for entry in entries
                if _PLACE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            ]

    def bytes(self) -> int:
        """Return the bytes of all bundles in the folder, of every program and role: what `limit_bytes` limits."""
        total = 0
        with explained("the folder must be readable", self.folder):
            for place in self._places():
                with opened_directory(place) as directory:
                    for file_name, status in regular_files(directory):
                        if BundleName.of_file(file_name) or _TEMPORARY.fullmatch(file_name):
                            total += status.st_size
        return total


def _laid_out(sections: Sections, meta: dict[str, Any]) -> tuple[Section, ...]:
    return lay_out(sections, len(encode_meta(meta)))


def _oldest_first(directory: int) -> list[BundleName]:
    found = []
    for file_name, status in regular_files(directory):
        name = BundleName.of_file(file_name)
        if name is not None:
            found.append((status.st_mtime_ns, name))
    return [name for _, name in sorted(found)]


def _make_durable(directory: int, files: list[io.FileIO]) -> None:
    """Wait until the names are gone from the disk; if that fails, nobody may read the files."""
    try:
        sync(directory)
    except BaseException:
        for file in files:
            file.close()
        raise


def _remove(place: Path, unwanted: Callable[[str, os.stat_result], bool]) -> int:
    """Remove files as taking does, so that one that is being taken or written is left to whoever does that."""
    removed = 0
    with opened_directory(place) as directory:
        for file_name, status in regular_files(directory):
            if unwanted(file_name, status):
                with contextlib.suppress(BundleDamaged):
                    file = claim(directory, file_name, place / file_name)
                    if file is not None:
                        file.close()
                        removed += 1
        if removed:
            sync(directory)
    return removed


def _check_arguments(program: object, role: object, limit_bytes: object, keep_days: object) -> None:
    if not isinstance(program, bytes) or len(program) != PROGRAM_BYTES:
        got = f"{len(program)} bytes" if isinstance(program, bytes) else f"a {type(program).__name__}"
        remedy = "pass the SHA-256 of the public program"
        raise StoreError(problem("the digest of a program must be 32 bytes", got=got, remedy=remedy))
    if role not in ROLES:
        raise StoreError(problem("the role must be 'client' or 'server'", got=repr(role)[:40], remedy="name one"))
    whole = isinstance(limit_bytes, int | np.integer) and not isinstance(limit_bytes, bool)
    if limit_bytes is not None and (not whole or limit_bytes < 1):  # type: ignore[operator]
        raise StoreError(
            problem(
                "the limit of the store must be an integer of at least 1 byte",
                got=repr(limit_bytes)[:40],
                remedy="leave it out for no limit",
            )
        )
    number = isinstance(keep_days, int | float) and not isinstance(keep_days, bool)
    if not number or not math.isfinite(keep_days) or keep_days <= 0:  # type: ignore[arg-type, operator]
        raise StoreError(
            problem(
                "the days that bundles are kept must be a finite number above 0",
                got=repr(keep_days)[:40],
                remedy="leave it at 30",
            )
        )
