"""Both parties on this machine, as `deepreduce demo` ends."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deepreduce.cli._rehearsal import rehearse
from deepreduce.private.deployment import save_model
from deepreduce.private.wire import certificate, self_signed

from ..private.service.parties import sure, tiny


def test_example_a_rehearsal_in_a_folder_whose_certificate_has_run_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = save_model(tiny(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(certificate, "VALID_DAYS", 0)
        old = [path.read_bytes() for path in self_signed(tmp_path, ["127.0.0.1"])]
    time.sleep(1.1)  # until it has
    images, labels = sure(tiny(), 2)
    files: Any = SimpleNamespace(server=server)
    run = rehearse(files, images, folder=tmp_path)
    assert np.array_equal(run.labels, labels) and run.to_json()["equal_to_twin"] == 2
    new = [(tmp_path / name).read_bytes() for name in ("cert.pem", "key.pem")]
    assert old[0] != new[0] and old[1] != new[1]
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
