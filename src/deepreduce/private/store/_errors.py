"""The errors of the bundle store; all have the four parts of `deepreduce.errors.problem`."""

from __future__ import annotations

from deepreduce.errors import DeepReduceError


class StoreError(DeepReduceError):
    """The store was called wrongly, or its folder cannot be used; also the base of the other three."""


class StoreFull(StoreError):  # noqa: N818 - a state that the user ends, like the two below
    """The disk, or the limit that the user gave, has no room for another bundle."""


class BundleGone(StoreError):  # noqa: N818
    """The bundle was taken, discarded or expired, or was never there."""


class BundleDamaged(StoreError):  # noqa: N818
    """A bundle's file is not what its writer left; it is never served."""
