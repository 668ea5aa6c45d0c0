"""DeepReduce: find out which ReLUs of a network matter, remove the rest, and make private inference fast.

    import deepreduce

    counts = deepreduce.profile("resnet18", input=(3, 32, 32))
    front = deepreduce.reduce(network, images, out="run")
    entry = front.best(relus=50_000)
    reduced, recipe = front.load(entry)

Names are imported when they are first used, so that `import deepreduce` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from ._api import plan_reduce, plan_train, profile, reduce, train
    from ._environment import environment
    from ._estimate import estimate
    from ._export import Exported, export
    from .census import Census, take_census
    from .data import Dataset, from_arrays
    from .data import load as load_data
    from .errors import DeepReduceError
    from .networks import NetworkSpec, build
    from .reduction import Candidate
    from .reduction.recipe import Recipe
    from .reduction.recipe import load_network as load
    from .reduction.recipe import save_network as save
    from .report import write_figures, write_page
    from .training import Front, RunOptions, SearchSettings, TrainingConfig

_HOMES = {
    "profile": ("_api", "profile"),
    "reduce": ("_api", "reduce"),
    "plan_reduce": ("_api", "plan_reduce"),
    "plan_train": ("_api", "plan_train"),
    "train": ("_api", "train"),
    "environment": ("_environment", "environment"),
    "estimate": ("_estimate", "estimate"),
    "Exported": ("_export", "Exported"),
    "export": ("_export", "export"),
    "Census": ("census", "Census"),
    "take_census": ("census", "take_census"),
    "Dataset": ("data", "Dataset"),
    "from_arrays": ("data", "from_arrays"),
    "load_data": ("data", "load"),
    "DeepReduceError": ("errors", "DeepReduceError"),
    "NetworkSpec": ("networks", "NetworkSpec"),
    "build": ("networks", "build"),
    "Candidate": ("reduction", "Candidate"),
    "Recipe": ("reduction.recipe", "Recipe"),
    "load": ("reduction.recipe", "load_network"),
    "save": ("reduction.recipe", "save_network"),
    "write_figures": ("report", "write_figures"),
    "write_page": ("report", "write_page"),
    "Front": ("training", "Front"),
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
    "Dataset",
    "DeepReduceError",
    "Exported",
    "Front",
    "NetworkSpec",
    "Recipe",
    "RunOptions",
    "SearchSettings",
    "TrainingConfig",
    "__version__",
    "build",
    "environment",
    "estimate",
    "export",
    "from_arrays",
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
