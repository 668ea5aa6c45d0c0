"""The verb that carries a reduced network from training to private inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .data import Dataset
from .data import load as load_data
from .errors import DataError, UsageError, problem
from .training import Front

if TYPE_CHECKING:
    from .private.program import FormatSettings


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Attributes:
        server: the server's file: it holds the weights.
        client: the clients' file: public.
        entry: the network, as `front.json` has it.
        agreement: how far fixed point is from floating point on the calibration images.
        formats: what was chosen for every step; depends on weights and images, so it is secret.
    """

    server: Path
    client: Path
    entry: dict[str, Any]
    agreement: dict[str, Any]
    formats: dict[str, Any]


def export(
    run: Front | Path | str,
    *,
    relus: int,
    out: Path | str,
    data: str | Dataset | None = None,
    images: int = 512,
    settings: FormatSettings | None = None,
    network: nn.Module | None = None,
) -> Exported:
    """Write the best network within a budget as a server's file and a clients' file.

    Args:
        run: a front, or the run folder of a finished reduce.
        relus: largest number of ReLUs.
        out: folder for the two files.
        data: the images that calibrate the fixed-point formats; None takes the run's by its name. Training images
            alone are used.
        images: how many of them, at least 2; the more, the surer that no value leaves its range.
        settings: of the formats; None takes the defaults.
        network: the full network, where it is not a reference network.

    Returns:
        The files and what they hold.

    Raises:
        UsageError: no network of the front is within the budget, or `images` is out of range.
        NetworkError: the network does not convert, with its place and the remedy.
        DataError: the images are not those of the network.
        RunError, RecipeError: the run folder is not complete.
    """
    from .private.deployment import About, make_model, save_model
    from .private.program import make_program

    if images < 2:
        raise UsageError(problem("at least two images calibrate", got=images, remedy="take some hundreds"))
    front = run if isinstance(run, Front) else Front.read(run)
    entry = front.best(relus=relus)
    reduced, recipe = front.load(entry, network=network)
    named = str(front.content["data"]["name"])
    source = _load(data if data is not None else named, len(recipe.classes))
    if source.input != recipe.spec.input or source.classes != recipe.classes:
        raise DataError(
            problem(
                f"images of {recipe.spec.input} and {len(recipe.classes)} classes, as the network was trained with",
                got=f"{source.input} and {len(source.classes)} classes from {source.name}",
                remedy="name the data of the run",
                where=front.folder,
            )
        )
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    chosen = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(0))[:images]
    calibration = (source.train.images[chosen].float() / 255 - mean) / std
    program = make_program(reduced, calibration, settings=settings)
    about = About(
        network=f"{recipe.spec.name}, {entry['label']}" if entry.get("label") else recipe.spec.name,
        relus=program.public.relus,
        classes=recipe.classes,
        mean=recipe.mean,
        std=recipe.std,
    )
    server, client = save_model(make_model(program, about), Path(out))
    assert program.report is not None
    report = program.report.to_json()
    return Exported(server, client, entry, report["agreement"], report)


def _load(data: str | Dataset, classes: int) -> Dataset:
    """Read images; of more classes than the network has, the first ones, as `--first-classes` takes them."""
    if not isinstance(data, str):
        return data
    whole = load_data(data)
    return whole if len(whole.classes) <= classes else load_data(data, classes=classes)
