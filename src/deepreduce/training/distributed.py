"""Several processes that train one network together, as `torchrun` starts them: who writes, and what all agree on.

Only the first process reads and writes the run folder; what it finds there is told to the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def process_count() -> int:
    """Return how many processes train together; 1 outside of `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Tell whether this is the process that writes."""
    return process_count() == 1 or int(os.environ.get("RANK", "0")) == 0


def on_processors() -> bool:
    """Tell whether processes train together without a GPU: accelerate must be told, or each would be alone."""
    return process_count() > 1 and not torch.accelerator.is_available()


def agree(decide: Callable[[], T]) -> T:
    """Let the first process decide, and return its decision in all of them.

    Should it fail, it ends with the error, and `torchrun` ends the others.

    Args:
        decide: called in the first process only; what it returns is sent, so it is plain data.
    """
    if process_count() == 1:
        return decide()
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=on_processors())  # joins the group
    box = [decide() if is_first() else None]
    broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def part() -> None:
    """Wait for all processes and take the group down, so that none ends while another still talks to it."""
    if process_count() > 1 and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
