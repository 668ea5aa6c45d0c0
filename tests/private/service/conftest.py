"""One certificate for all tests of the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from .parties import certificate_in


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate_in(tmp_path_factory.mktemp("tls"))
