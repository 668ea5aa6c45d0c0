"""Either party killed (SIGKILL) at every step of both phases, then started again: nothing is used twice, nobody hangs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepreduce.private.deployment import save_model

from ..private.service.parties import sure, tiny
from .protocol_victim import DEADLINE_SECONDS

OTHER = {"client": "server", "server": "client"}


def killed_everywhere(folder: Path, victim: str) -> tuple[list[dict[str, Any]], int]:
    """Run the script; return what happened at every step, and the label that is right."""
    images, labels = sure(tiny(), 1)
    save_model(tiny(), folder)
    np.save(folder / "image.npy", images)
    script = Path(__file__).with_name("protocol_victim.py")
    command = [sys.executable, str(script), str(folder), victim, "1", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), int(labels[0])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["client", "server"])
def test_killed_at_every_step(tmp_path: Path, victim: str) -> None:
    results, label = killed_everywhere(tmp_path, victim)
    survivor = OTHER[victim]
    *deaths, last = results
    assert last["client"]["label"] == label and last[victim]["steps"] == len(deaths)
    died_at = [one[victim]["died"] for one in deaths]
    messages = {"OFFER", "SUMS", "KEY", "REQUEST", "CORRECTIONS", "PREPARE", "START", "INPUT", "WORDS", "HELLO"}
    if victim == "server":
        messages = {"WELCOME", "GO", "CHOICES", "ANSWER", "TABLES", "READY", "LABELS", "RESULT"}
    take = "take" if victim == "server" else "take_next"
    calls = {f"before {name}" for name in (*messages, "create", "write", "finish", "publish", take, "receive")}
    calls |= {f"within {name}" for name in messages} | {"claimed", "after publish", f"after {take}"}
    assert calls <= set(died_at)
    for one in deaths:
        assert one[victim]["exit"] == -signal.SIGKILL
        # The survivor came to its end by itself, soon, and either with our error or with the right answer.
        assert one[survivor]["exit"] == 0 and "crashed" not in one[survivor], one
        assert one["survived_seconds"] < DEADLINE_SECONDS, one
        if survivor == "client" and "label" not in one["client"]:
            assert one["client"]["error"] in ("PeerGone", "PeerError", "PeerTimeout"), one
            assert "Got: " in one["client"]["message"] and "Do: " in one["client"]["message"], one
        elif survivor == "client":  # the server had said everything and waited for the goodbye
            assert one["client"]["label"] == label and one["server"]["died"] == "before receive_any", one
        # Whatever the client could still spend has its other half at the server.
        assert set(one["client_has"]) <= set(one["server_has"]), one
        # Both parties start again, and the next image is classified at the first try.
        assert one["next"]["client"].get("label") == label, one
        assert one["next"]["server"]["exit"] == 0 and "crashed" not in one["next"]["server"], one
        assert set(one["next"]["client_has"]) <= set(one["next"]["server_has"]), one
    for role in ("client", "server"):
        taken = (tmp_path / f"taken-{role}").read_text().split()
        assert len(taken) > len(deaths)
        assert max(Counter(taken).values()) == 1  # no bundle was ever opened twice
    at_server = set((tmp_path / "taken-server").read_text().split())
    assert at_server <= set((tmp_path / "taken-client").read_text().split())
