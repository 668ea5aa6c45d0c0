"""DELPHI (Mishra et al., USENIX Security 2020), from its published logs: see `constants/delphi.json`."""

from __future__ import annotations

from collections.abc import Sequence

from ._constants import constants_of
from .costs import Cost, Counts, Phase
from .links import Link


def delphi_online_seconds(relus: int, macs: int) -> float:
    """Estimate the online time of one private inference with DELPHI.

    ReLUs are 97 % of it in the full networks. Network latency is not accounted for.

    Args:
        relus: number of ReLUs, for one image.
        macs: MACs, for one image.

    Returns:
        Seconds.
    """
    constants = constants_of("delphi")
    return relus * constants["online_seconds_per_relu"] + macs * constants["online_seconds_per_mac"]


def delphi_cost(counts: Counts, links: Sequence[Link]) -> Cost:
    """Estimate one private inference with DELPHI.

    Args:
        counts: of the network, for one image.
        links: each gives the seconds over it.

    Returns:
        The cost; `not_accounted` says what is missing from it.
    """
    constants = constants_of("delphi")
    relus, macs = counts.relus, counts.macs
    gates = round(relus * constants["and_gates_per_relu"])
    sent = round(relus * constants["online_sent_bytes_per_relu"])
    received = round(relus * constants["online_received_bytes_per_relu"])
    size = sent + received
    compute = delphi_online_seconds(relus, macs)
    trips = round(counts.relu_layers * constants["online_round_trips_per_relu_layer"]) + 1
    online = Phase(gates, size, sent, received, trips, compute, _over(links, compute, size, trips))
    size = round(relus * constants["offline_bytes_per_relu"])
    compute = relus * constants["offline_seconds_per_relu"] + macs * constants["offline_seconds_per_mac"]
    layers = counts.relu_layers + counts.linear_layers
    trips = round(layers * constants["offline_round_trips_per_layer"])
    offline = Phase(gates, size, None, None, trips, compute, _over(links, compute, size, trips))
    return Cost(
        "delphi",
        constants.title,
        setup=None,
        offline=offline,
        online=online,
        client_bytes=round(relus * constants["stored_bytes_per_relu"]),
        server_bytes=None,
        source=constants.source,
        hardware=constants.hardware,
        date=constants.date,
        not_accounted=constants.not_accounted,
    )


def _over(links: Sequence[Link], compute: float, size: int, round_trips: int) -> dict[str, float]:
    return {link.name: link.seconds(compute=compute, size=size, round_trips=round_trips) for link in links}
