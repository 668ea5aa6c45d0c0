"""The bundle store: what was prepared for an image, on disk, and taken at most once whatever crashes when.

    format.py    the name and the file of a bundle
    writer.py    writing it piece by piece
    bundle.py    reading it once it is taken
    store.py     the folder: create, take, count, expire
    _system.py   locks, durability, space

    store = BundleStore(folder, program=digest, role="client")
    with store.create(BundleName(session, 0), {"masks": (np.uint64, (4096,))}, {"layers": 1}) as writer:
        writer.write("masks", 0, masks)
        writer.finish()      both parties finish, tell each other, and then
        writer.publish()
    with store.take(BundleName(session, 0)) as bundle:
        masks = bundle.array("masks")

Why at most once. A bundle has one name, under which it is published by one rename after all of it is on the disk.
Taking opens the file, locks it, removes the name, sees that the file has no name left, and synchronises the directory;
only then is a byte of the file read. Of all that try, the system lets one remove the name. Whoever dies before that
leaves the bundle as it was, and nothing of it was read; whoever dies later holds a file without a name, which the
system frees with the process. After a power loss the same holds, because the removal is on the disk before the first
read. This assumes a local file system whose fsync of a directory is durable (ext4, xfs, btrfs, APFS), a disk that does
not lie about its cache, and that nobody restores, copies or links files of the folder.
"""

from ._errors import BundleDamaged, BundleGone, StoreError, StoreFull
from ._system import room_for_files
from .bundle import Bundle
from .format import MAX_NUMBER, BundleName, Role
from .store import BundleStore
from .writer import BundleWriter

__all__ = [
    "MAX_NUMBER",
    "Bundle",
    "BundleDamaged",
    "BundleGone",
    "BundleName",
    "BundleStore",
    "BundleWriter",
    "Role",
    "StoreError",
    "StoreFull",
    "room_for_files",
]
