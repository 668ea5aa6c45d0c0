"""Our engine: both phases of the protocol, played on a clock from the layout alone.

Gates, bytes and round trips are exact, because the layout decides every message. Seconds come from measured constants
(`constants/ours.json`), each party on a machine of its own: per hash, label, ciphertext, product or byte, and online
for every linear layer, round of circuits and inference, whatever their size. The messages are those of
`protocol.session`, `protocol.offline` and `protocol.online` in the same order, so that work of both parties overlaps
here as it does there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...errors import UsageError, problem
from ._constants import Constants, constants_of
from .costs import Cost, Phase
from .links import IDEAL, Link, Timeline

if TYPE_CHECKING:  # the estimates of other protocols need neither numpy nor the extra `private`
    from ..program import Step
    from ..protocol import Job, Layout, OnlineRound, Unit

MAX_TOGETHER = 1024
"""As of `service.messages`, which needs the extra `private`."""

_READY_BYTES = len(b'{"number":0}')
"""Of the message that says that a bundle is finished; a number beyond 9 is longer."""

START_BYTES = LABEL_BYTES = 16
"""Start of the tweaks, beside the choices of the base transfers, see `protocol.session`; and a label."""


def our_cost(
    layout: Layout, links: Sequence[Link], *, cores: int = 2, together: int = 1, constants: Constants | None = None
) -> Cost:
    """Estimate one private inference with our engine that reveals the label.

    Args:
        layout: of the public program, from `make_layout`.
        links: each gives the seconds over it.
        cores: that each party uses, at least 1.
        together: bundles that are prepared together, at least 1; the offline phase is what each has of it.
        constants: measured on another machine; None takes those of the package.

    Returns:
        The cost. Connections greet and bundles are named with a few hundred bytes more, see `service.messages`.

    Raises:
        UsageError: `cores` or `together` is out of range.
    """
    from ..protocol.sections import client_sections, server_sections

    if cores < 1:
        raise UsageError(problem("each party uses at least one core", got=cores, remedy="give 1 or more"))
    if not 1 <= together <= MAX_TOGETHER:
        raise UsageError(
            problem(
                f"1 to {MAX_TOGETHER:,} bundles are prepared together",
                got=together,
                remedy="give a number in this range",
                where="--together",
            )
        )
    known = constants or constants_of("ours")
    play = _Play(layout, known, cores, together)
    gates = sum(unit.and_gates for unit in layout.units)
    client, server = (
        sum(math.prod(shape) * kind.itemsize for kind, shape in sections(layout).values())
        for sections in (client_sections, server_sections)
    )
    return Cost(
        "ours",
        known.title,
        setup=play.phase(play.setup, links, 0),
        offline=play.phase(play.offline, links, gates, bundles=together),
        online=play.phase(play.online, links, gates),
        client_bytes=client,
        server_bytes=server,
        source=known.source,
        hardware=known.hardware,
        date=known.date,
        not_accounted=known.not_accounted,
    )


class _Play:
    """The phases of a layout, message by message."""

    def __init__(self, layout: Layout, constants: Constants, cores: int, together: int) -> None:
        from ..protocol import lots

        self._layout, self._constants, self._cores = layout, constants, cores
        self._lots = tuple(lots(together, together))

    def phase(self, play: Callable[[Timeline], None], links: Sequence[Link], gates: int, *, bundles: int = 1) -> Phase:
        """Play a phase once without a network and once over each link; return each bundle's part of it."""
        ideal = Timeline(IDEAL)
        play(ideal)
        seconds = {}
        for link in links:
            over = Timeline(link, self._constants["tls_seconds_per_byte"])
            play(over)
            seconds[link.name] = over.seconds / bundles
        sent, received, trips = (
            -(-all_ // bundles) for all_ in (ideal.sent_bytes, ideal.received_bytes, ideal.round_trips)
        )
        return Phase(gates, sent + received, sent, received, trips, ideal.seconds / bundles, seconds)

    def setup(self, line: Timeline) -> None:
        """See `protocol.session`."""
        from ..homomorphic import key_size
        from ..transfer import base_choices_bytes, base_offer_bytes, tree_sums_bytes

        constants = self._constants
        line.send("client", base_offer_bytes())
        line.receive("server")
        line.work("server", constants["base_transfers_server_seconds"])
        line.send("server", base_choices_bytes() + START_BYTES + base_offer_bytes())
        line.receive("client")
        line.work("client", constants["base_transfers_client_seconds"] + constants["base_transfers_server_seconds"])
        line.send("client", tree_sums_bytes() + base_choices_bytes() + START_BYTES)
        line.receive("server")
        line.work("server", constants["base_transfers_client_seconds"])
        line.send("server", tree_sums_bytes())
        line.receive("client")
        for parameters in self._layout.parameters:
            line.work("client", constants["keys_seconds"])
            line.send("client", key_size(parameters))
            line.receive("server")

    def offline(self, line: Timeline) -> None:
        """See `protocol.offline`: the client works one message, or one group of them, ahead."""
        for bundles in self._lots:
            self._homomorphic(line, bundles)
            self._units(line, bundles)

    def _units(self, line: Timeline, bundles: int) -> None:
        before: list[Unit] = []
        for group in self._layout.groups(bundles):
            units = [unit for _, unit in group]
            self._correct(line, units, before)
            before = units
        self._correct(line, [], before)
        for _ in range(bundles):
            line.send("server", _READY_BYTES)
            line.receive("client")

    def _homomorphic(self, line: Timeline, bundles: int) -> None:
        jobs: dict[int, list[Job]] = {}
        for job in self._layout.jobs_together(bundles):
            jobs.setdefault(job.step.output, []).append(job)
        known: set[int] = {0}
        waiting: Job | None = None
        for step in self._layout.schedule:
            if waiting is not None and any(tensor not in known for tensor in step.inputs):
                self._collect(line, waiting)
                known.add(waiting.step.output)
                waiting = None
            if not step.weighted:
                known.add(step.output)
                continue
            for job in jobs[step.output]:
                line.work("client", self._over_cores(job, "encrypt") * job.plan.plan.requests)
                if waiting is not None:
                    line.receive("client")
                line.send("client", job.request_bytes)
                line.receive("server")
                line.work("server", self._respond(job))
                line.send("server", job.answer_bytes)
                if waiting is not None:
                    line.work("client", self._over_cores(waiting, "decrypt") * waiting.plan.plan.answers)
                    known.add(waiting.step.output)
                waiting = job
        if waiting is not None:
            self._collect(line, waiting)

    def _collect(self, line: Timeline, job: Job) -> None:
        line.receive("client")
        line.work("client", self._over_cores(job, "decrypt") * job.plan.plan.answers)

    def _respond(self, job: Job) -> float:
        """The workers share ciphertexts, then products and answers."""
        plan = job.plan.plan
        unpacked = self._over_cores(job, "unpack") * plan.requests
        products = self._over_cores(job, "product") * plan.products
        if plan.tiling.images > 1:
            unpacked += self._over_cores(job, "spread") * plan.requests
            products = self._over_cores(job, "tap") * plan.answers * plan.weights_per_answer
        return unpacked + products + self._over_cores(job, "answer") * plan.answers

    def _over_cores(self, job: Job, what: str) -> float:
        """Seconds per ciphertext or product; at most as many workers as there are ciphertexts."""
        plan = job.plan.plan
        parts = plan.requests if what in ("encrypt", "unpack", "spread") else plan.answers
        return self._constants[f"{what}_{len(job.parameters.prime_bits)}_primes_seconds"] / min(self._cores, parts)

    def _correct(self, line: Timeline, units: Sequence[Unit], before: Sequence[Unit]) -> None:
        """Corrections of a group, what comes of the answers to the one before, and the answers."""
        for unit in units:
            line.work("client", self._choose(unit))
        for _ in before:
            line.receive("client")
        for unit in units:
            line.send("client", unit.corrections_bytes)
        for unit in units:
            line.receive("server")
            line.work("server", self._answer(unit))
            if unit.circuit is not None:
                line.work("client", unit.transfers * LABEL_BYTES * self._constants["store_seconds_per_byte"])
        for unit in before:
            self._keep(line, unit)
        for unit in units:
            line.send("server", unit.answer_bytes)
        line.work("server", sum(map(self._permute, before)))

    def _choose(self, unit: Unit) -> float:
        """Corrections, at the client."""
        choosing = self._constants["choose_seconds"] if unit.circuit is None else 0.0
        return unit.transfers * (self._constants["transfer_client_seconds"] + choosing)

    def _answer(self, unit: Unit) -> float:
        """What the server answers."""
        constants = self._constants
        seconds = unit.transfers * constants["transfer_server_seconds"]
        if unit.circuit is not None:
            return seconds + unit.hashes * constants["garble_seconds_per_hash"] / self._cores
        seconds += unit.transfers * constants["offer_seconds"] / self._cores
        pads = unit.choices * unit.pad_words * constants["choose_seconds"] / self._cores
        return seconds + unit.choices * constants["transfer_client_seconds"] + pads

    def _keep(self, line: Timeline, unit: Unit) -> None:
        """What the client does with an answer."""
        constants = self._constants
        if unit.circuit is not None:
            line.work("client", unit.answer_bytes * constants["store_seconds_per_byte"])
            return
        pads = unit.pad_words * constants["offer_seconds"]
        line.work("client", unit.choices * (constants["transfer_server_seconds"] + pads) + self._permute(unit))
        line.send("client", unit.permuting_bytes)
        line.receive("server")

    def _permute(self, unit: Unit) -> float:
        return unit.instances * unit.index_bits * unit.table_words * self._constants["permute_seconds"]

    def online(self, line: Timeline) -> None:
        """See `protocol.online`."""
        layout = self._layout
        constants = self._constants
        # What there is to do for no element at all, of both parties: it is one after the other, and counted at once.
        line.work("client", constants["inference_seconds"])
        line.send("client", layout.input_bytes)
        line.receive("server")
        for one in layout.rounds:
            line.work("server", constants["round_seconds"])
            line.work("server", sum(self._linear(step) for step in one.linear))
            self._labels(line, one.units)
            self._words(line, one)
        line.work("server", sum(self._linear(step) for step in layout.tail))
        self._labels(line, (layout.ending,))
        line.send("server", layout.ending.instances * layout.ending.circuit.output_bits)
        line.receive("client")

    def _labels(self, line: Timeline, units: Sequence[Unit]) -> None:
        constants = self._constants
        for unit in units:
            if unit.circuit is None:
                line.work("server", unit.instances * constants["ask_seconds"])
            else:
                line.work("server", unit.garbler_labels_bytes // LABEL_BYTES * constants["label_seconds"])
            line.send("server", unit.labels_bytes)
            line.receive("client")
            if unit.circuit is None:
                line.work("client", unit.instances * constants["reply_seconds"])
            else:
                line.work("client", unit.hashes * constants["evaluate_seconds_per_hash"] / self._cores)

    def _words(self, line: Timeline, one: OnlineRound) -> None:
        line.send("client", sum(unit.words_bytes for unit in one.units))
        line.receive("server")
        for unit in one.units:
            each = self._constants["word_seconds" if unit.circuit is not None else "output_seconds"]
            line.work("server", unit.instances * each)

    def _linear(self, step: Step) -> float:
        """Seconds of a linear step on the server's share."""
        form = self._layout.public.tensors[step.output]
        elements = form.size * self._constants["element_seconds"]
        if not step.weighted:
            return elements
        fan_in = math.prod(step.op.weight_shape[1:])  # type: ignore[union-attr] # what is weighted has a shape
        # As `ring.products` computes: in words of 32 bits where the ring has no more.
        each = self._constants["narrow_mac_seconds" if form.ring_bits <= 32 else "mac_seconds"]
        return self._constants["layer_seconds"] + elements + form.size * fan_in * each / self._cores
