"""Options that several commands share."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, problem
from ..training.config import TrainingConfig
from ._console import say

if TYPE_CHECKING:
    from torch import nn

    from ..data import Dataset
    from ..training import RunOptions, SearchSettings


def size(text: str) -> tuple[int, int, int]:
    """Read `3x32x32`."""
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"write it like 3x32x32, not {text!r}") from None
    if channels > 4 and width in (1, 3):
        say(
            f"note: {text} is read as {channels} channels of height {height} and width {width}; "
            f"an image of {width} channel{'' if width == 1 else 's'} is {width}x{channels}x{height}"
        )
    return channels, height, width


def stages(text: str) -> tuple[str, ...]:
    """Read `S2,S3`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def counts(text: str) -> tuple[int, ...]:
    """Read `50000` or `50000,12000`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"write whole numbers like 50000 or 50000,12000, not {text!r}") from None


def numbers(text: str) -> tuple[float, ...]:
    """Read `0.5,0.5,0.5`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"write numbers like 0.5,0.5,0.5, not {text!r}") from None


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add NETWORK and `add_base`."""
    parser.add_argument(
        "network",
        metavar="NETWORK",
        help="resnet18, resnet34, mobilenet_v1, vgg16, wide_resnet_22_8, package.module:function, or timm:NAME",
    )
    add_base(parser)


def add_base(parser: argparse._ActionsContainer) -> None:
    """Add what a network that is named begins with: --width and --exchange-activations."""
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        metavar="X",
        help="width of the full network, for the reference networks (default 1)",
    )
    parser.add_argument(
        "--exchange-activations",
        action="store_true",
        help="put ReLUs in the place of GELU, SiLU, LeakyReLU and the like, constants in that of gates such as "
        "squeeze-and-excitation, batch norms in that of group and layer norms; the teacher is then trained with them",
    )


def add_reduction(parser: argparse._ActionsContainer) -> None:
    """Add the options that describe one reduced network."""
    parser.add_argument("--keep", type=stages, metavar="S2,S3", help="stages that keep their ReLUs (default all)")
    parser.add_argument("--thin", action="store_true", help="drop alternate ReLU layers of those stages")
    parser.add_argument("--alpha", type=float, default=1.0, metavar="X", help="scale of the channels, such as 0.5")
    parser.add_argument(
        "--rho", type=float, default=1.0, metavar="X", help="scale of the resolution: 0.5, 0.25 or 0.125"
    )
    parser.add_argument(
        "--beta",
        type=numbers,
        default=(),
        metavar="X[,X]",
        help="scale of the channels of the layers that keep their ReLUs, for all stages or each of them; other layers "
        "stay as wide as they are",
    )
    parser.add_argument(
        "--trim",
        type=counts,
        default=(),
        metavar="N[,N]",
        help="positions that go on every side of the feature maps of those layers, where there is a way around them; "
        "for all stages or each of them",
    )
    parser.add_argument(
        "--bypass",
        action="store_true",
        help="put linear layers beside those layers, in place of the channels and positions that they lose",
    )
    parser.add_argument(
        "--collapse",
        action="store_true",
        help="make one convolution of the layers before the first ReLU that stays",
    )
    parser.add_argument(
        "--average-pooling", action="store_true", help="put average pooling in the place of max pooling"
    )


def reduction(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_reduction` read, and the width, by the names that `profile` and `estimate` give them."""
    names = (
        "keep",
        "thin",
        "alpha",
        "rho",
        "beta",
        "trim",
        "bypass",
        "collapse",
        "average_pooling",
        "width",
        "exchange_activations",
    )
    return {name: getattr(options, name) for name in names}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the options that name and split the images."""
    group = parser.add_argument_group("images")
    group.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="digits, a folder of parquet files or images, or OWNER/NAME on the hub",
    )
    group.add_argument(
        "--validation",
        type=float,
        default=0.1,
        metavar="X",
        help="share of the training images that chooses (default 0.1)",
    )
    group.add_argument("--first-classes", type=int, metavar="K", help="use the first K classes alone")
    group.add_argument("--per-class", type=int, metavar="N", help="use N training images of each class")
    group.add_argument(
        "--mean", type=numbers, metavar="X,X,X", help="of pixels in [0, 1]; default: of the training images"
    )
    group.add_argument(
        "--std", type=numbers, metavar="X,X,X", help="of pixels in [0, 1]; default: of the training images"
    )
    group.add_argument("--image-column", metavar="NAME", help="column of a parquet file that holds the images")
    group.add_argument("--label-column", metavar="NAME", help="column of a parquet file that holds the labels")


def load_data(options: argparse.Namespace) -> Dataset:
    """Load the images that the options name, and say what the user should know about them."""
    from ..data import load

    data = load(
        options.data,
        validation=options.validation,
        classes=options.first_classes,
        per_class=options.per_class,
        mean=options.mean,
        std=options.std,
        image_column=options.image_column,
        label_column=options.label_column,
    )
    for note in data.notes:
        say(f"note: {note}")
    return data


_HELP = {
    "epochs": "passes over the training images for teacher and candidates",
    "batch_size": "images per step",
    "learning_rate": "at its peak",
    "warmup": "share of training in which the learning rate rises",
    "momentum": "of SGD",
    "weight_decay": "of SGD",
    "crop": "border in pixels for random crops; 0 for none (default: an eighth of the image)",
    "distillation": "weight of the teacher against the labels; 0 for none",
    "temperature": "of distillation",
    "fade": "share of training over which removed ReLUs turn into the identity; 0 removes them at once",
}


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add one option for every training setting, with its default."""
    group = parser.add_argument_group("training")
    defaults = TrainingConfig()
    for field in fields(TrainingConfig):
        value = getattr(defaults, field.name)
        if field.name not in _HELP:
            continue
        text = _HELP[field.name] + ("" if value is None else f" (default {value:g})")
        kind = int if isinstance(value, int) or value is None else float
        group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, metavar="X", help=text)
    group.add_argument("--no-flip", action="store_true", help="no mirrored images (never mirrored: digits)")
    group.add_argument("--no-warm-start", action="store_true", help="start students from fresh weights")
    group.add_argument(
        "--precision", choices=["auto", "no", "bf16", "fp16"], help="default auto: bf16 on a GPU that has it"
    )
    group.add_argument(
        "--compile", choices=["auto", "on", "off"], help="default auto: on a GPU, for 20,000 steps or more"
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how jobs run on this machine."""
    group = parser.add_argument_group("running")
    group.add_argument(
        "--threads", type=int, metavar="N", help="processor threads of each job (default: the cores, shared out evenly)"
    )
    group.add_argument(
        "--checkpoint-seconds",
        type=float,
        default=20.0,
        metavar="X",
        help="how often a running job is saved, to be continued after a stop (default 20)",
    )
    group.add_argument("--tracker", metavar="NAME", help="log to a tracker that accelerate knows, such as tensorboard")


def run_options(options: argparse.Namespace, **more: Any) -> RunOptions:
    """Turn the options of `add_running` into an object."""
    from ..training import RunOptions

    return RunOptions(
        threads=options.threads, checkpoint_seconds=options.checkpoint_seconds, tracker=options.tracker, **more
    )


def search_settings(options: argparse.Namespace, **more: Any) -> SearchSettings:
    """Turn the options into settings; what was not typed keeps its default."""
    from ..training import SearchSettings

    typed = {
        name: getattr(options, name) for name in (*_HELP, "precision", "compile") if getattr(options, name) is not None
    }
    # Mirrored digits are other characters. A folder of the same name is reached as ./digits, so it is not meant here.
    training = TrainingConfig(
        **typed, flip=not options.no_flip and options.data != "digits", warm_start=not options.no_warm_start
    )
    return SearchSettings(training=training, **more)


def existing_file(text: str) -> Path:
    """Return a path to a file.

    Raises:
        UsageError: if there is none.
    """
    path = Path(text)
    if not path.is_file():
        raise UsageError(problem("the file must exist", got=text, remedy="check the path", where="--weights"))
    return path


def add_own_network(parser: argparse.ArgumentParser) -> None:
    """Add `--network`: the user's own network, beside a run folder or recipe that names it."""
    parser.add_argument(
        "--network",
        dest="own_network",
        metavar="NETWORK",
        help="the network of the run once more, if it is your own: package.module:function or timm:NAME. A run folder "
        "may not choose which code runs",
    )


def own_network(network: str, saved: Path) -> nn.Module:
    """Build the user's own network as a run, or a saved network, had it.

    Args:
        network: as the user names it.
        saved: run folder, folder of a network, or its recipe.

    Raises:
        UsageError: what was saved is of another network.
        RunError: what was saved is not complete.
    """
    from .._files import read_json
    from .._json import json_field
    from ..networks import NetworkSpec, build, is_reference
    from ..training import Front

    if (saved / "front.json").exists() or not (saved.is_file() or (saved / "recipe.json").exists()):
        content = Front.read(saved).content
    else:
        content = read_json(saved / "recipe.json" if saved.is_dir() else saved)
    spec = NetworkSpec.from_json(json_field(content, "network", dict))
    if ":" not in spec.name and not is_reference(spec.name) and ":" in network:
        # A module that was passed from Python, known by the name of its class; weights and probe tell whether it fits.
        return build(replace(spec, name=network))
    if spec.name != network:
        raise UsageError(
            problem(
                "--network is the network of the run",
                got=f"{network!r} for a run of {spec.name!r}",
                remedy=f"--network {spec.name}",
                where=saved,
            )
        )
    return build(spec)
