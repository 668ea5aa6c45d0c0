"""Cheetah (Huang et al., USENIX Security 2022), from a run of OpenCheetah: see `constants/cheetah.json`."""

from __future__ import annotations

from collections.abc import Sequence

from ._constants import constants_of
from .costs import Cost, Counts, Phase
from .links import Link


def cheetah_cost(counts: Counts, links: Sequence[Link]) -> Cost:
    """Estimate one private inference with Cheetah, which has no offline phase.

    Args:
        counts: of the network, for one image.
        links: each gives the seconds over it.

    Returns:
        The cost; `not_accounted` says what is missing from it.
    """
    constants = constants_of("cheetah")
    compute = counts.relus * constants["seconds_per_relu"] + counts.macs * constants["seconds_per_mac"]
    size = round(counts.relus * constants["bytes_per_relu"] + counts.macs * constants["bytes_per_mac"])
    trips = round(
        counts.relu_layers * constants["round_trips_per_relu_layer"]
        + counts.linear_layers * constants["round_trips_per_linear_layer"]
    )
    seconds = {link.name: link.seconds(compute=compute, size=size, round_trips=trips) for link in links}
    ready = constants["setup_seconds"]
    return Cost(
        "cheetah",
        constants.title,
        setup=Phase(0, 0, None, None, 0, ready, {link.name: ready for link in links}),
        offline=None,
        online=Phase(0, size, None, None, trips, compute, seconds),
        client_bytes=0,
        server_bytes=0,
        source=constants.source,
        hardware=constants.hardware,
        date=constants.date,
        not_accounted=constants.not_accounted,
    )
