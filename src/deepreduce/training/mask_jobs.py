"""The job that finds masks, and what is read from its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from .._files import append_line, check_format, read_json, replacing, write_json
from .._json import json_field
from ..errors import DeepReduceError, RunError, problem
from ..reduction import Candidate, MaskOrder, Masks, is_slope, make_base, masked_candidate
from .batches import DeviceSplit
from .checkpoint import Checkpoint
from .jobs import Context, Job, clear, identity, job_accelerator, load_teacher, write_metrics
from .loop import count_correct
from .mask_search import MaskSearch

FORMAT, VERSION = "deepreduce.masks", 2  # 1: found by other algorithms under the same names


def run_mask_job(job: Job, context: Context, should_stop: Callable[[], bool]) -> str:
    """Search for masks from the teacher's weights, and write history, masks, weights, and last of all metrics.

    The weights are those that the search leaves: the candidate's training goes on from there, as it does in the
    papers. A finder that does not train leaves the teacher's. The accuracy in the metrics is that of the network as the
    search leaves it, before any fine-tuning.

    Args:
        job: with `masks`.
        context: the rest of the run.
        should_stop: asked before every step.

    Returns:
        What the user should know about it; empty as a rule.
    """
    assert job.masks is not None
    folder = context.folder / job.place
    folder.mkdir(parents=True, exist_ok=True)
    base = make_base(context.spec, context.network)
    teacher = load_teacher(context)
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", identity(job, context), context.checkpoint_seconds)
    with job_accelerator(job, context) as accelerator:
        history: list[dict[str, Any]] = []
        if accelerator.is_main_process:
            clear(folder)

        def note(line: dict[str, Any]) -> None:
            history.append(line)
            if accelerator.is_main_process:
                append_line(folder / "history.jsonl", line)
            accelerator.log({"loss": line["loss"], "relus": line["relus"]}, step=line["epoch"])

        begun = time.monotonic()
        search = MaskSearch(job.masks, base.census, job.config, accelerator, job.seed)
        train = DeviceSplit.of(context.data.train, context.normalisation, accelerator.device)
        found, network = search.run(
            teacher.network, train, checkpoint=checkpoint, on_epoch=note, should_stop=should_stop
        )
        surveyed = time.monotonic() - begun
        validation = DeviceSplit.of(context.data.validation, context.normalisation, accelerator.device)
        correct = count_correct(network, validation, accelerator)
        if accelerator.is_main_process:
            order = job.masks
            candidate = masked_candidate(
                base.census, found, method=order.method, granularity=order.granularity, budget=order.budget
            )
            tensors = {name: value.contiguous() for name, value in network.state_dict().items() if not is_slope(name)}
            with replacing(folder / "weights.safetensors") as temporary:
                save_file(tensors, temporary)
            write_json(folder / "masks.json", {"format": FORMAT, "version": VERSION, "candidate": candidate.to_json()})
            seconds = sum(line["seconds"] for line in history) if history else surveyed
            images = sum(line["steps"] for line in history) * train.batch(job.config.batch_size)
            rate = images / seconds if history else None
            write_metrics(job, context, correct, epochs=len(history), seconds=seconds, images_per_second=rate)
            checkpoint.path.unlink(missing_ok=True)
    if checkpoint.damage:
        return f"{job.place} began anew; its checkpoint could not be used (kept as .damaged): {checkpoint.damage}"
    return ""


def read_masks(folder: Path, order: MaskOrder) -> Candidate:
    """Return the candidate that a finished mask job found.

    Args:
        folder: of the job.
        order: what it was to find.

    Raises:
        RunError: if the file is missing, damaged, or of another job.
    """
    path = folder / "masks.json"
    value = read_json(path)
    check_format(value, FORMAT, VERSION, path)
    try:
        candidate = Candidate.from_json(json_field(value, "candidate", dict))
        masks = candidate.masks
        if masks is None or (masks.method, masks.granularity, masks.budget) != (
            order.method,
            order.granularity,
            order.budget,
        ):
            raise ValueError("the masks of another job")
    except (DeepReduceError, ValueError) as error:
        raise RunError(
            problem(
                "masks.json must be complete",
                got=error,
                remedy="remove its folder and run the same command again; the masks are then searched anew",
                where=path,
            )
        ) from error
    return candidate


def unknown_candidate(order: MaskOrder) -> Candidate:
    """Return what stands for a candidate whose masks are not known: its label is right, and it keeps no ReLU."""
    return Candidate(keep=(), masks=Masks(order.method, order.granularity, order.budget))
