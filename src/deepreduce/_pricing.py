"""What networks cost with our engine, from the layout of their programs: for `estimate`, and for all of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from ._version import __version__
from .errors import MissingExtraError, NetworkError, problem
from .private.estimate import LINKS, Phase, constants_of, our_cost

if TYPE_CHECKING:
    from .private.program import Program
    from .private.protocol import Layout

CORES = 2
"""Cores of each party in the prices of a run."""

SETTLE_IMAGES, CALIBRATION_IMAGES = 16, 4
"""Random images for the statistics of batch norm, and for the ranges of the formats."""

_ANY_ERROR = 1e9

_PLAN = 4
"""Counts how often programs began to be planned otherwise: prices that were kept from before are computed anew."""


class OurPricer:
    """Says what one inference with our engine costs; see `deepreduce.training.pricing.Pricer`."""

    def __init__(self) -> None:
        from .private.program import FormatSettings

        known = constants_of("ours")
        self.links: tuple[str, ...] = tuple(LINKS)
        self.signature = (
            f"deepreduce {__version__}, constants of {known.date}, {CORES} cores, plan {_PLAN}, {FormatSettings()}"
        )

    def __call__(self, network: fx.GraphModule, images: Tensor) -> dict[str, Any]:
        """Return `online` and `offline` (each `seconds` by link, `bytes`, `round_trips`), `and_gates`, `client_bytes`
        and `server_bytes`, for one image.

        Raises:
            NetworkError: the network does not convert, or a layer is too large.
        """
        layout, _ = layout_of(network, images)
        cost = our_cost(layout, list(LINKS.values()), cores=CORES)
        assert cost.offline is not None
        return {
            "online": _phase(cost.online),
            "offline": _phase(cost.offline),
            "and_gates": cost.online.and_gates,
            "client_bytes": cost.client_bytes,
            "server_bytes": cost.server_bytes,
        }

    def objection(self, network: nn.Module, input: tuple[int, int, int]) -> str | None:
        """Return why a network's operators cannot run privately, None if they can; weights do not matter."""
        from .private.program.convert import convert
        from .private.program.fold import check_shapes, simplify

        try:
            graph = convert(network, input)
            simplify(graph)
            check_shapes(graph)
        except NetworkError as error:
            return str(error)
        return None

    def about(self) -> dict[str, Any]:
        """Return what the seconds rest on: links, cores of each party, and the constants' source and hardware."""
        known = constants_of("ours")
        return {
            "links": {
                name: {"bits_per_second": link.bits_per_second, "round_trip_seconds": link.round_trip_seconds}
                for name, link in LINKS.items()
            },
            "cores": CORES,
            "source": known.source,
            "hardware": known.hardware,
            "date": known.date,
        }


def our_pricer() -> OurPricer | None:
    """Return who prices networks for our engine, None where the extra `private` is not installed."""
    try:
        from .private import deployment  # noqa: F401 - all that a layout needs
    except MissingExtraError:
        return None
    return OurPricer()


def layout_of(graph: nn.Module, images: Tensor, *, any_error: bool = False) -> tuple[Layout, tuple[str, ...]]:
    """Make the program of a network, and lay it out.

    Args:
        graph: the network, in evaluation mode.
        images: a few, normalised; they calibrate the formats, as if they were hundreds.
        any_error: lay out even what `deepreduce export` refuses because fixed point changes the logits too much: the
            sizes are the same.

    Returns:
        The layout, and notes.

    Raises:
        NetworkError: the network does not convert, or a layer is too large for our engine.
        MissingExtraError: the extra `private` is not installed.
    """
    from .private.deployment import About, make_model
    from .private.homomorphic import HomomorphicError
    from .private.program import FormatSettings, make_program

    notes = []
    try:
        program = make_program(graph, images, settings=FormatSettings(doubt=0.0))
    except NetworkError as refused:
        if not any_error:
            raise
        try:
            program = make_program(graph, images, settings=FormatSettings(doubt=0.0, tolerance=_ANY_ERROR))
        except NetworkError:
            raise refused from None
        notes.append(f"these weights would be refused by deepreduce export: {refused}")
    classes, channels = tuple(map(str, range(program.public.classes))), images.shape[1]
    about = About("estimate", program.public.relus, classes, (0.0,) * channels, (1.0,) * channels)
    try:
        return make_model(program, about).client.layout, tuple(notes)
    except HomomorphicError as error:
        raise NetworkError(
            problem(
                "our engine carries every linear layer of the network",
                got=str(error),
                remedy="take a smaller input or narrower layers, or estimate --protocol delphi or cheetah",
                where=_too_large(program) or "all linear layers together",
            )
        ) from error


def _too_large(program: Program) -> str | None:
    """Return the first layer that cannot be packed by itself."""
    from .private.homomorphic import LayerError, plan_step
    from .private.program import Convolution, Matrix

    tensors = program.public.tensors
    for step in program.public.steps:
        if isinstance(step.op, (Convolution, Matrix)):
            try:
                plan_step(step.op, tensors[step.inputs[0]].shape, tensors[step.output].shape)
            except LayerError:
                return step.name
    return None


def _phase(phase: Phase) -> dict[str, Any]:
    return {"seconds": dict(phase.seconds), "bytes": phase.bytes, "round_trips": phase.round_trips}


def random_images(count: int, size: tuple[int, int, int]) -> Tensor:
    """Draw smooth images: as in photographs, neighbouring pixels are alike."""
    channels, height, width = size
    low = torch.randn(count, channels, max(1, height // 4), max(1, width // 4))
    smooth = F.interpolate(low, size=(height, width), mode="bilinear", align_corners=False)
    return 1.2 * smooth + 0.2 * torch.randn(count, channels, height, width)


def settle(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of some images, as training would: without it values grow from layer to layer."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        network.train()(images)
    network.eval()
