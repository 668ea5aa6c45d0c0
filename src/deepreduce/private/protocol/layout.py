"""The layout of a program: who does what in which order, and how many bytes travel. All of it is public.

Both parties compute it from the public program. Beside it the number of images alone decides how long a message is:
START names a bundle for each, as many as the server allows.

    layout.jobs      linear layers with weights, in the order of their homomorphic messages
    layout.units     what is not linear, in portions, in the order of preparation; a unit's number is the tweak's layer
    layout.rounds    the online phase: linear steps, then units, one message each way
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...errors import NetworkError, problem
from ..garbling import compile_circuit
from ..garbling.types import MAX_LAYERS
from ..homomorphic import Parameters, StepPlan, answer_size, check_total, choose_parameters, plan_steps, request_size
from ..program import Convolution, Matrix, PublicProgram, Step, is_argmax
from .memory import ServerMemory, server_memory
from .packing import packed_bytes, word_type
from .units import PORTION, GarbledUnit, OnlineRound, Unit, cut_units, ending_unit

GROUP_BYTES = 6 << 20
"""Most that travels for units whose messages go together, both ways, if there are several. A group takes a round trip.
So with 100 Mbit/s and 40 ms it waits for less than a tenth of its time, and it stays in memory."""

GROUP_BUNDLES = 16
"""Most bundles that have units in one group: each is an open file at both parties, until the next group is over."""

_SMALL_RING = 39
"""Rings up to this share one set of parameters with primes of 56 bits; larger ones share another."""


@dataclass(frozen=True)
class Job:
    """A linear layer with weights, for the homomorphic phase, of one or several bundles.

    Attributes:
        step: the program's step.
        plan: how it is packed.
        parameters: of the encryption; their ring is at least the step's.
        first: the first of its bundles, among those that are prepared together.
    """

    step: Step
    plan: StepPlan
    parameters: Parameters
    first: int = 0

    @property
    def bundles(self) -> slice:
        """Its bundles, among those that are prepared together."""
        return slice(self.first, self.first + self.plan.images)

    @property
    def request_bytes(self) -> int:
        """Client to server."""
        return request_size(self.parameters, self.plan.plan)

    @property
    def answer_bytes(self) -> int:
        """Server to client."""
        return answer_size(self.parameters, self.plan.plan)


@dataclass(frozen=True, eq=False)
class Layout:
    """See the module.

    Attributes:
        public: the program.
        weight_bits: bits of the integer weights with their sign, the same bound for all layers; public.
        schedule: all steps but the arg-max, so that homomorphic messages that do not depend on one another stand
            side by side.
        jobs: in the order of `schedule`.
        rounds: without the arg-max: `tail` and `ending` follow them.
        tail: linear steps after the last round.
        ending: the unit of the arg-max.
        parameters: the different sets of `jobs`; the client draws one pair of keys for each.
    """

    public: PublicProgram
    weight_bits: int
    schedule: tuple[Step, ...]
    jobs: tuple[Job, ...]
    rounds: tuple[OnlineRound, ...]
    tail: tuple[Step, ...]
    ending: GarbledUnit
    parameters: tuple[Parameters, ...]

    @functools.cached_property
    def units(self) -> tuple[Unit, ...]:
        """All units, in the order of their numbers."""
        return (*(unit for one in self.rounds for unit in one.units), self.ending)

    def groups(self, bundles: int) -> Iterator[list[tuple[int, Unit]]]:
        """Yield the units whose messages go together when so many bundles are prepared, with the place of the bundle.

        They go bundle by bundle, and in each in the order of their numbers.
        """
        group: list[tuple[int, Unit]] = []
        size = 0
        for place, unit in itertools.product(range(bundles), self.units):
            if group and (size + unit.prepared_bytes > GROUP_BYTES or place - group[0][0] >= GROUP_BUNDLES):
                yield group
                group, size = [], 0
            group.append((place, unit))
            size += unit.prepared_bytes
        if group:
            yield group

    @functools.cached_property
    def memory(self) -> ServerMemory:
        """What the server holds online, and in which pieces it works."""
        return server_memory(self.public, self.rounds, self.tail, max(unit.working_bytes for unit in self.units))

    def jobs_together(self, bundles: int) -> tuple[Job, ...]:
        """Return what `jobs` is for so many bundles that are prepared together; the jobs of a step follow each other.

        Args:
            bundles: how many, at least 1; one of `lots`, because every number is kept.
        """
        if bundles not in self._together:
            self._together[bundles] = tuple(part for job in self.jobs for part in _parts(job, bundles))
        return self._together[bundles]

    @functools.cached_property
    def _together(self) -> dict[int, tuple[Job, ...]]:
        return {1: self.jobs}

    @functools.cached_property
    def server_share_bytes(self) -> int:
        """What the server keeps in memory of each of several bundles while they are prepared together."""
        forms = (self.public.tensors[job.step.output] for job in self.jobs)
        return sum(form.size * word_type(form.ring_bits).itemsize for form in forms)

    @functools.cached_property
    def client_share_bytes(self) -> int:
        """What the client keeps in memory likewise: its shares of all tensors."""
        return 8 * sum(form.size for form in self.public.tensors)

    def compile(self) -> None:
        """Translate all circuits for the kernel now, and not when an image waits: the arg-max takes a while."""
        for circuit in dict.fromkeys(circuit for unit in self.units for circuit in unit.circuits()):
            compile_circuit(circuit)

    def offline_bytes(self, bundles: int = 1) -> int:
        """Return what travels for bundles that are prepared together, both ways, frames' headers apart."""
        return self.linear_bytes(bundles) + bundles * self.units_bytes

    @functools.cached_property
    def units_bytes(self) -> int:
        """How much of that is of all that is not linear, of one bundle."""
        return sum(unit.prepared_bytes for unit in self.units)

    def linear_bytes(self, bundles: int = 1) -> int:
        """Return how much of that is of linear layers."""
        return sum(job.request_bytes + job.answer_bytes for job in self.jobs_together(bundles))

    @functools.cached_property
    def online_bytes(self) -> int:
        """What travels for one image, both ways, frames' headers apart; the decoding bits of the arg-max as bytes."""
        result = max(self.logits_bytes, self.ending.circuit.output_bits)
        return self.input_bytes + sum(unit.labels_bytes + unit.words_bytes for unit in self.units) + result

    @property
    def input_bytes(self) -> int:
        """The masked image on the wire."""
        return packed_bytes(self.public.input.size, self.public.input.ring_bits)

    @property
    def logits_bytes(self) -> int:
        """The server's share of the logits on the wire."""
        form = self.public.tensors[self.public.logits]
        return packed_bytes(form.size, form.ring_bits)


def lots(bundles: int, most: int) -> Iterator[int]:
    """Yield how many bundles are prepared together, one lot after the other, the largest first.

    Of a lot the leading two binary digits alone are not zero. So there are few sizes, and a client cannot make a server
    keep plans for every number.

    Args:
        bundles: how many in all.
        most: of a lot, at least 1.
    """
    while bundles > 0:
        size = min(bundles, most)
        size &= 3 << max(0, size.bit_length() - 2)
        yield size
        bundles -= size


def make_layout(public: PublicProgram, *, weight_bits: int) -> Layout:
    """Lay a checked program out.

    Args:
        public: the program.
        weight_bits: every integer weight is in [-2^(w-1), 2^(w-1)).

    Raises:
        NetworkError: there are fewer than two classes, or too many circuits.
        LayerError, ParameterError: a linear layer is beyond what the encryption carries, or all of them are beyond
            what is planned.
    """
    if public.classes < 2:
        raise NetworkError(
            problem(
                "a private inference chooses among at least two classes",
                got=public.classes,
                remedy="give the network two outputs",
            )
        )
    schedule = _schedule(public)
    jobs = _jobs(public, schedule, weight_bits)
    rounds: list[OnlineRound] = []
    tail: tuple[Step, ...] = ()
    number = 0
    for one in public.rounds():
        steps = tuple(step for step in one.circuits if not is_argmax(step))
        if not steps:
            tail = one.linear
            continue
        units: list[Unit] = []
        for step in steps:
            units += cut_units(public, step, number + len(units))
        number += len(units)
        rounds.append(OnlineRound(one.linear, steps, tuple(units)))
    ending = ending_unit(public, number)
    if number >= MAX_LAYERS:
        raise NetworkError(
            problem(
                f"a program has at most {MAX_LAYERS:,} units of up to {PORTION:,} ReLUs or circuits",
                got=number,
                remedy="reduce the network further, or its input",
            )
        )
    parameters = tuple(dict.fromkeys(job.parameters for job in jobs))
    return Layout(public, weight_bits, schedule, jobs, tuple(rounds), tail, ending, parameters)


def _parts(job: Job, bundles: int) -> Iterator[Job]:
    first = 0
    for plan in job.plan.of_images(bundles):
        yield dataclasses.replace(job, plan=plan, first=first)
        first += plan.images


def _schedule(public: PublicProgram) -> tuple[Step, ...]:
    """Order the steps by how many homomorphic answers in a row they wait for."""
    level = {0: 0}
    for step in public.steps:
        op = step.circuit
        fresh = op is not None and (op.kept is None or op.rest_in_circuit)
        before = 0 if fresh else max(level[tensor] for tensor in step.inputs)
        level[step.output] = before + step.weighted
    return tuple(sorted(public.steps[:-1], key=lambda step: level[step.output]))


def _jobs(public: PublicProgram, schedule: Sequence[Step], weight_bits: int) -> tuple[Job, ...]:
    """Plan the linear layers; those with rings of a size share parameters and so keys."""
    weighted = [step for step in schedule if step.weighted]
    rings = [public.tensors[step.output].ring_bits for step in weighted]
    plans = plan_steps(
        (step.op, public.tensors[step.inputs[0]].shape, public.tensors[step.output].shape)
        for step in weighted
        if isinstance(step.op, (Convolution, Matrix))
    )
    check_total([plan.plan for plan in plans])
    chosen: dict[bool, Parameters] = {}
    for large in (False, True):
        members = [(plan.plan, ring) for plan, ring in zip(plans, rings, strict=True) if (ring > _SMALL_RING) == large]
        if members:
            ring = max(ring for _, ring in members)
            chosen[large] = choose_parameters([plan for plan, _ in members], ring_bits=ring, weight_bits=weight_bits)
    return tuple(
        Job(step, plan, chosen[ring > _SMALL_RING]) for step, plan, ring in zip(weighted, plans, rings, strict=True)
    )
