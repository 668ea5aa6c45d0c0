"""The job that finds masks, and what is read from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from .._files import append_line, check_format, read_json, replacing, write_json
from .._json import json_field
from ..errors import DeepReduceError, RunError, problem
from ..reduction import Base, Candidate, Mask, MaskOrder, Masks, SlopedReLU, is_slope, masked_candidate
from ..reduction.surgery.lines import LINE_PREFIX, absorb_line, line_sites
from .batches import DeviceSplit
from .checkpoint import Checkpoint
from .jobs import (
    Context,
    Job,
    clear,
    identity,
    job_accelerator,
    load_teacher,
    remove_checkpoints,
    settings_that_count,
    write_metrics,
)
from .loop import count_correct
from .mask_search import MaskSearch

FORMAT, VERSION = "deepreduce.masks", 4  # 1 to 3: found by other algorithms under the same names


def run_mask_job(job: Job, context: Context, should_stop: Callable[[], bool]) -> str:
    """Search masks from the teacher's weights, and write them, weights and history, and last of all metrics.

    The candidate's training goes on from the weights that the search leaves, as it does in the papers. The accuracy in
    the metrics is that of the network as it is then, before any fine-tuning.

    Args:
        job: with `masks`.
        context: the rest of the run.
        should_stop: asked before every step.

    Returns:
        What the user should know about it; empty as a rule.
    """
    assert job.masks is not None
    (context.folder / job.place).mkdir(parents=True, exist_ok=True)
    with job_accelerator(job, context) as accelerator:
        train = DeviceSplit.of(context.data.train, context.normalisation, accelerator.device)
        taught = load_teacher(context)
        search = MaskSearch(job.masks, taught.census, job.schedule, accelerator, job.seed)
        return _search(job, context, search, taught, train, should_stop)


def _search(
    job: Job, context: Context, search: MaskSearch, taught: Base, train: DeviceSplit, should_stop: Callable[[], bool]
) -> str:
    """Carry out the search, and write what it found; see `run_mask_job`."""
    order, folder, accelerator = search.order, context.folder / job.place, search.accelerator
    checkpoint = Checkpoint(
        folder / job.checkpoint,
        f"{identity(job, context)}-{VERSION}",
        context.checkpoint_seconds,
        settings_that_count(job),
    )
    history: list[dict[str, Any]] = []
    if accelerator.is_main_process:
        clear(folder)

    def note(line: dict[str, Any]) -> None:
        history.append(line)
        if accelerator.is_main_process:
            append_line(folder / "history.jsonl", line)
        accelerator.log({"loss": line["loss"], "relus": line["relus"]}, step=line["epoch"])

    found, network = search.run(taught.network, train, checkpoint=checkpoint, on_epoch=note, should_stop=should_stop)
    correct = _correct(network, context, accelerator)
    if accelerator.is_main_process:
        slopes = [module for module in network.modules() if isinstance(module, SlopedReLU)]
        drawn = {slope.site: slope.line.detach() for slope in slopes if slope.line is not None}
        candidate = masked_candidate(
            taught.census,
            found,
            method=order.method,
            granularity=order.granularity,
            budget=order.budget,
            lines=bool(drawn),
            most_layers=order.most_layers,
            average_pooling=order.average_pooling,
        )
        tensors = _weights(network, line_sites(taught.network), found, drawn)
        with replacing(folder / "weights.safetensors") as temporary:
            save_file(tensors, temporary)
        _write_masks(job, context, candidate)
        seconds = sum(line["seconds"] for line in history)
        images = sum(line["steps"] for line in history) * train.batch(job.config.batch_size)
        write_metrics(job, context, correct, epochs=len(history), seconds=seconds, images_per_second=images / seconds)
        remove_checkpoints(folder)
    notes = []
    if checkpoint.damage:
        notes.append(f"{job.place} began anew; its checkpoint could not be used (kept beside it): {checkpoint.damage}")
    total = sum(int(mask.sum()) for mask in found.values())
    if order.most_layers is not None and total < order.budget:
        notes.append(f"{order.label}: there was room for {total:,} ReLUs; with a larger --most-layers there is more")
    return "; ".join(notes)


def _weights(
    network: fx.GraphModule, norms: Mapping[str, str], found: Mapping[str, Mask], lines: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what the candidate's training begins with: weights of the full network, and lines by call site.

    A layer that has lost all its ReLUs has its line in the batch norm in front of it.
    """
    for site, line in lines.items():
        if not found[site].any():
            absorb_line(network, norms[site], line)
    weights = {name: value for name, value in network.state_dict().items() if not is_slope(name)}
    partial = {LINE_PREFIX + site: line for site, line in lines.items() if 0 < found[site].mean() < 1}
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in {**weights, **partial}.items()}


def _correct(network: nn.Module, context: Context, accelerator: Accelerator) -> int:
    split = DeviceSplit.of(context.data.validation, context.normalisation, accelerator.device)
    return count_correct(network, split)


def _write_masks(job: Job, context: Context, candidate: Candidate) -> None:
    content = {"format": FORMAT, "version": VERSION, "candidate": candidate.to_json()}
    write_json(context.folder / job.place / "masks.json", content)


def read_masks(folder: Path, order: MaskOrder) -> Candidate:
    """Return the candidate that a finished mask job found.

    Args:
        folder: of the job.
        order: what it was to find.

    Raises:
        RunError: if the file is missing, damaged, of another release or of another job.
    """
    path = folder / "masks.json"
    value = read_json(path)
    remedy = "remove its folder and run the same command again; the masks are then searched anew"
    check_format(value, FORMAT, VERSION, path, remedy=f"use the release that wrote it; or {remedy}")
    try:
        candidate = Candidate.from_json(json_field(value, "candidate", dict))
        masks = candidate.masks
        if masks is None or order != MaskOrder(
            masks.method, masks.granularity, masks.budget, masks.most_layers, candidate.average_pooling
        ):
            raise ValueError("the masks of another job")
    except (DeepReduceError, ValueError) as error:
        raise RunError(
            problem(
                "masks.json must be complete",
                got=error,
                remedy=remedy,
                where=path,
            )
        ) from error
    return candidate


def unknown_candidate(order: MaskOrder) -> Candidate:
    """Return what stands for a candidate whose masks are not known: its label is right, and it keeps no ReLU."""
    masks = Masks(order.method, order.granularity, order.budget, most_layers=order.most_layers)
    return Candidate(keep=(), masks=masks, average_pooling=order.average_pooling)
