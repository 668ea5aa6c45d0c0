"""Training one network, and searching over many, in a run folder that can be continued.

A newcomer reads `loop.py` (how a network is trained), then `pareto_search.py` (which networks, and what is chosen).
`phases.py` carries jobs out: `jobs.py` writes the folder of one network, `mask_jobs.py` finds masks, `dispatch.py` does
whichever a job asks for, `checkpoint.py` keeps the state, `run_folder.py` knows what is finished, and `executors.py`
runs jobs side by side. Names are imported when they are first used, so that options cost no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .config import TrainingConfig
    from .dispatch import run_job
    from .distillation import distillation_loss
    from .estimate import plan, plan_teacher
    from .executors import default_workers
    from .front import Front, describe
    from .intervals import summarise, wilson_interval
    from .jobs import Context, Job, require_tracker
    from .loop import Epoch, accuracy, make_accelerator, train
    from .outcome import Outcome
    from .pareto_search import Search, search, train_teacher
    from .progress import Progress
    from .settings import RunOptions, SearchSettings

_HOMES = {
    "Checkpoint": "checkpoint",
    "Context": "jobs",
    "Epoch": "loop",
    "Front": "front",
    "Job": "jobs",
    "Outcome": "outcome",
    "Progress": "progress",
    "RunOptions": "settings",
    "Search": "pareto_search",
    "SearchSettings": "settings",
    "TrainingConfig": "config",
    "accuracy": "loop",
    "default_workers": "executors",
    "describe": "front",
    "distillation_loss": "distillation",
    "make_accelerator": "loop",
    "plan": "estimate",
    "plan_teacher": "estimate",
    "require_tracker": "jobs",
    "run_job": "dispatch",
    "search": "pareto_search",
    "summarise": "intervals",
    "train": "loop",
    "train_teacher": "pareto_search",
    "wilson_interval": "intervals",
}

__all__ = [
    "Checkpoint",
    "Context",
    "Epoch",
    "Front",
    "Job",
    "Outcome",
    "Progress",
    "RunOptions",
    "Search",
    "SearchSettings",
    "TrainingConfig",
    "accuracy",
    "default_workers",
    "describe",
    "distillation_loss",
    "make_accelerator",
    "plan",
    "plan_teacher",
    "require_tracker",
    "run_job",
    "search",
    "summarise",
    "train",
    "train_teacher",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
