"""The same examples and the same weights in every run, whatever ran before and whatever else the machine does.

One thread, too: small networks gain nothing from several, and on a busy machine lose much by waiting for each other.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

# A new example that fails, or one that takes long while another process has the core, belongs to no change of the code.
# To look for new examples: `pytest --hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def fresh_module() -> None:
    """For what a file makes once: the file before it is another one in every run."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded(fresh_module: None) -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread(fresh_module: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, and in those that a test starts."""
    torch.set_num_threads(1)
    monkeypatch.setattr("deepreduce.private.ring._threads._threads", 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs do changes no note of a run."""
    monkeypatch.setattr("deepreduce.training.phases.busy_share", lambda: 0.0)
