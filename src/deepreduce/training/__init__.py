"""Training one network, and searching over many, in a run folder that can be continued."""

from .config import TrainingConfig
from .distillation import distillation_loss
from .executors import default_workers
from .front import Front, describe
from .intervals import summarise, wilson_interval
from .jobs import Context, Job, require_tracker, run_job
from .loop import Epoch, accuracy, make_accelerator, train
from .search import Outcome, Progress, Search, plan, search, train_teacher
from .settings import SearchSettings

__all__ = [
    "Context",
    "Epoch",
    "Front",
    "Job",
    "Outcome",
    "Progress",
    "Search",
    "SearchSettings",
    "TrainingConfig",
    "accuracy",
    "default_workers",
    "describe",
    "distillation_loss",
    "make_accelerator",
    "plan",
    "require_tracker",
    "run_job",
    "search",
    "summarise",
    "train",
    "train_teacher",
    "wilson_interval",
]
