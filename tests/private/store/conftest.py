"""A store to test, and short ways to fill it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepreduce.private.store import BundleName, BundleStore

SESSION = bytes(range(16))
PROGRAM = bytes(range(100, 132))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundles"


@pytest.fixture
def store(folder: Path) -> BundleStore:
    return BundleStore(folder, program=PROGRAM, role="client")


@pytest.fixture
def place(folder: Path) -> Path:
    return folder / f"{PROGRAM.hex()}-client"


@pytest.fixture
def put() -> Callable[..., BundleName]:
    """Publish a bundle of one section."""

    def publish(store: BundleStore, number: int = 0, session: bytes = SESSION, **meta: Any) -> BundleName:
        name = BundleName(session, number)
        with store.create(name, {"masks": (np.uint64, (5,))}, meta) as writer:
            writer.write("masks", 0, np.arange(number, number + 5, dtype=np.uint64))
            writer.finish()
            writer.publish()
        return name

    return publish
