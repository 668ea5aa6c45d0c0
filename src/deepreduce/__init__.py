"""DeepReduce: find out which ReLUs of a network matter, remove the rest, and make private inference fast.

    import deepreduce

    counts = deepreduce.profile("resnet18", input=(3, 32, 32))
    front = deepreduce.reduce(network, images, out="run")  # a module of yours, and its images
    entry = front.best(relus=50_000)
    reduced, recipe = front.load(entry, network=network)

Names are imported when they are first used, so that `import deepreduce` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._api import load, plan_reduce, plan_train, profile, reduce, save, take_census, train
    from ._environment import environment
    from ._estimate import estimate
    from ._export import Exported, export
    from ._time_budget import layers_within
    from .census import Census
    from .data import Dataset, from_arrays
    from .data import load as load_data
    from .errors import (
        DataError,
        DeepReduceError,
        Interrupted,
        MissingExtraError,
        NetworkError,
        RecipeError,
        RunError,
        TrainingError,
        UsageError,
    )
    from .networks import NetworkSpec, build
    from .private.estimate import Link
    from .private.program import FormatSettings
    from .reduction import Candidate
    from .reduction.recipe import Recipe
    from .report import write_figures, write_page
    from .training import Front, Outcome, Progress, RunOptions, SearchSettings, TrainingConfig

_HOMES = {
    "load": ("_api", "load"),
    "profile": ("_api", "profile"),
    "save": ("_api", "save"),
    "take_census": ("_api", "take_census"),
    "reduce": ("_api", "reduce"),
    "plan_reduce": ("_api", "plan_reduce"),
    "plan_train": ("_api", "plan_train"),
    "train": ("_api", "train"),
    "environment": ("_environment", "environment"),
    "estimate": ("_estimate", "estimate"),
    "Exported": ("_export", "Exported"),
    "export": ("_export", "export"),
    "layers_within": ("_time_budget", "layers_within"),
    "Census": ("census", "Census"),
    "Dataset": ("data", "Dataset"),
    "from_arrays": ("data", "from_arrays"),
    "load_data": ("data", "load"),
    "DataError": ("errors", "DataError"),
    "DeepReduceError": ("errors", "DeepReduceError"),
    "Interrupted": ("errors", "Interrupted"),
    "MissingExtraError": ("errors", "MissingExtraError"),
    "NetworkError": ("errors", "NetworkError"),
    "RecipeError": ("errors", "RecipeError"),
    "RunError": ("errors", "RunError"),
    "TrainingError": ("errors", "TrainingError"),
    "UsageError": ("errors", "UsageError"),
    "NetworkSpec": ("networks", "NetworkSpec"),
    "build": ("networks", "build"),
    "Link": ("private.estimate", "Link"),
    "FormatSettings": ("private.program", "FormatSettings"),
    "Candidate": ("reduction", "Candidate"),
    "Recipe": ("reduction.recipe", "Recipe"),
    "write_figures": ("report", "write_figures"),
    "write_page": ("report", "write_page"),
    "Front": ("training", "Front"),
    "Outcome": ("training", "Outcome"),
    "Progress": ("training", "Progress"),
    "RunOptions": ("training", "RunOptions"),
    "SearchSettings": ("training", "SearchSettings"),
    "TrainingConfig": ("training", "TrainingConfig"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f".{module}", __name__), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


__all__ = [
    "Candidate",
    "Census",
    "DataError",
    "Dataset",
    "DeepReduceError",
    "Exported",
    "FormatSettings",
    "Front",
    "Interrupted",
    "Link",
    "MissingExtraError",
    "NetworkError",
    "NetworkSpec",
    "Outcome",
    "Progress",
    "Recipe",
    "RecipeError",
    "RunError",
    "RunOptions",
    "SearchSettings",
    "TrainingConfig",
    "TrainingError",
    "UsageError",
    "__version__",
    "build",
    "environment",
    "estimate",
    "export",
    "from_arrays",
    "layers_within",
    "load",
    "load_data",
    "plan_reduce",
    "plan_train",
    "profile",
    "reduce",
    "save",
    "take_census",
    "train",
    "write_figures",
    "write_page",
]
