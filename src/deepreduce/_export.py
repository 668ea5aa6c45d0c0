"""The verb that carries a reduced network from training to private inference."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._arguments import check_type, is_whole, shown
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
        private_relus: ReLUs that one private inference takes: more than those of the entry where there are ReLU6, up to
            two each, or maxima.
        agreement: how far fixed point is from floating point on the calibration images.
        formats: what was chosen for every step; depends on weights and images, so it is secret.
    """

    server: Path
    client: Path
    entry: dict[str, Any] = field(repr=False)
    private_relus: int = field(repr=False)
    agreement: dict[str, Any] = field(repr=False)
    formats: dict[str, Any] = field(repr=False)


def export(
    run: Front | Path | str,
    *,
    out: Path | str,
    relus: int | None = None,
    seconds: float | None = None,
    link: str = "lan",
    entry: str | None = None,
    data: str | Dataset | None = None,
    images: int = 512,
    settings: FormatSettings | None = None,
    network: nn.Module | None = None,
    name: str | None = None,
    replace: bool = False,
) -> Exported:
    """Write the best network within a budget as a server's file and a clients' file.

    Args:
        run: a front, or the run folder of a finished reduce.
        out: folder for the two files.
        relus: largest number of ReLUs: the most accurate network within it is taken.
        seconds: longest online time over `link`, as estimated in the run; beside `relus` or in its place.
        link: `lan` or `wan`, see `Front.best`.
        entry: instead of that, the id of a network that was trained; "teacher" for the full one.
        data: the images that calibrate the fixed-point formats; None takes the run's by its name. Training images
            alone are used.
        images: how many of them, at least 2; the more, the surer that no value leaves its range.
        settings: of the formats; None takes the defaults.
        network: the full network, where it is not a reference network.
        name: what clients see as the network's name; None takes that of a reference network, and "network" for one of
            your own, whose name is that of your code.
        replace: put the files in the place of those of another network; see `private.deployment.save_model`.

    Returns:
        The files and what they hold.

    Raises:
        UsageError: no network of the run is within the budget or has this id, or `images` is out of range.
        NetworkError: the network does not convert, with its place and the remedy.
        DataError: the images are not those of the network.
        RunError, RecipeError: the run folder is not complete, or `out` holds another network.
    """
    from .private.deployment import About, make_model, save_model
    from .private.program import FormatSettings, make_program

    _check(run, out, entry, data, images, network, name, replace)
    check_type("settings", settings, FormatSettings, NoneType)
    front = run if isinstance(run, Front) else Front.read(run)
    name = "network" if name is None and network is not None else name
    if entry is None:
        chosen = front.best(relus=relus, seconds=seconds, link=link)
    else:
        chosen = _named(front, entry, relus, seconds)
    reduced, recipe = front.load(chosen, network=network)
    source = _images_of(front, len(recipe.classes)) if data is None else _load(data, len(recipe.classes))
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
    some = torch.randperm(len(source.train), generator=torch.Generator().manual_seed(0))[:images]
    calibration = (source.train.images[some].float() / 255 - mean) / std
    program = make_program(reduced, calibration, settings=settings)
    about = About(
        network=f"{recipe.spec.name if name is None else name}, {chosen['label']}",
        relus=program.public.relus,
        classes=recipe.classes,
        mean=recipe.mean,
        std=recipe.std,
    )
    server, client = save_model(make_model(program, about), Path(out), replace=replace)
    assert program.report is not None
    report = program.report.to_json()
    return Exported(server, client, chosen, program.public.relus, report["agreement"], report)


def _check(
    run: object,
    out: object,
    entry: object,
    data: object,
    images: object,
    network: object,
    name: object,
    replace: object,
) -> None:
    """Refuse arguments of other types; those of the budget are checked by `Front.best`."""
    check_type("run", run, Front, str, Path, where="RUN")
    check_type("out", out, str, Path, where="--out")
    check_type("entry", entry, str, NoneType)
    check_type("data", data, str, Dataset, NoneType, where="--data")
    check_type("name", name, str, NoneType, where="--name")
    check_type("replace", replace, bool, where="--replace")
    if network is not None and not isinstance(network, nn.Module):
        raise UsageError(
            problem(
                "network is the module that was reduced",
                got=shown(network),
                remedy="pass the torch.nn.Module; on the command line --network takes a name",
                where="network",
            )
        )
    if not is_whole(images) or images < 2:
        raise UsageError(
            problem(
                "at least two images calibrate, a whole number of them",
                got=shown(images),
                remedy="take some hundreds",
                where="--images",
            )
        )


def _named(front: Front, entry: str, relus: int | None, seconds: float | None) -> dict[str, Any]:
    """Return the entry of this id."""
    if relus is not None or seconds is not None:
        raise UsageError(
            problem(
                "a budget or a network is named", got="both", remedy="pass relus and seconds, or entry", where="entry"
            )
        )
    known = {str(one["id"]): one for one in front.finished}
    if entry not in known:
        raise UsageError(
            problem(
                "the network was trained in the run",
                got=repr(entry),
                remedy=f"choose one of {', '.join(known)}",
                where=front.folder,
            )
        )
    return known[entry]


def _images_of(front: Front, classes: int) -> Dataset:
    """Read the images of the run by the name that it knows; of a local folder that is the last part alone."""
    name = str(front.content["data"]["name"])
    try:
        return _load(name, classes)
    except (UsageError, DataError) as error:
        raise UsageError(
            problem(
                "images calibrate the fixed-point formats: those of the run, if they are found by their name",
                got=f"{name!r}, which is not found from here",
                remedy="say where they are, with --data (from Python data=)",
                where=front.folder,
            )
        ) from error


def _load(data: str | Dataset, classes: int) -> Dataset:
    """Read images; of more classes than the network has, the first ones, as `--first-classes` takes them."""
    if not isinstance(data, str):
        return data
    whole = load_data(data)
    return whole if len(whole.classes) <= classes else load_data(data, classes=classes)
