"""A program on plain integers, with the very roundings of the secure run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from ...errors import DataError, problem
from ..program.evaluate import LinearEvaluator, circuit_function, nearest, rectified, rectified_range
from ..program.operations import Circuit, Truncation
from ..program.program import Agreement, Program, Step
from ..ring import (
    MAX_RING_BITS,
    Words,
    decode,
    drop_client,
    drop_server,
    encode,
    reduce,
    signed,
    split,
    truncate_client,
    truncate_server,
    unsigned,
)

_BATCH = 16
"""Images at a time: bounds the memory of a run."""

_HEADROOM = 6
"""Bits beyond the ring that the twin computes with, so that it sees values up to 64 times beyond their range."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a program answers on a batch.

    Attributes:
        labels: the class of each image, as the arg-max circuit finds it.
        logits: decoded from the logits tensor, before the arg-max drops its low bits.
        outside: how many values, per image, left the range of a circuit or a truncation: 0 unless the network meets
            values beyond its calibration times the margin; the answer for such an image is not to be trusted. Only
            the twin can see this; in a secure run nobody can.
    """

    labels: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n classes"]
    outside: Int[np.ndarray, " n"]


class Twin:
    """Runs a program in plain integers.

    Without recorded shares every division of shares, in circuits and truncations, rounds to nearest, ties upwards:
    deterministic, and one of the two values that a secure run can give (a truncation that fails gives another). So an
    element differs from a secure run's by at most one unit in the last place per division on its way, before it goes
    through later layers. Where a ReLU decides by some bits of the shares, numbers that are made from the value and its
    place stand for the client's share: an image gives one of the answers that secure runs give, and always the same.

    Args:
        program: the server's.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._linear = LinearEvaluator(program.public, program.weights)

    def encode(self, images: Float[np.ndarray, "n channels height width"]) -> Words:
        """Return images as elements of the ring of the input.

        Raises:
            DataError: if they are of another shape, or a value is outside the range of the input's format.
        """
        form = self.program.public.input
        if images.ndim != 4 or images.shape[1:] != form.shape:
            raise DataError(
                problem(
                    f"images are of shape (n, {', '.join(map(str, form.shape))})",
                    got=images.shape,
                    remedy="resize them as the network was trained",
                )
            )
        return encode(images, fraction_bits=form.fraction_bits, bits=form.ring_bits)

    def run(
        self,
        images: Float[np.ndarray, "n channels height width"],
        *,
        client_shares: Mapping[int, Words] | None = None,
    ) -> Answers:
        """Compute the program on normalised images.

        Args:
            images: as the network takes them, [n, channels, height, width].
            client_shares: of every tensor that a circuit or a truncation reads, by tensor id, the client's share of
                it in a secure run, [n, *shape] mod 2^k for the tensor's ring. With them the result is that run's, bit
                by bit.

        Raises:
            DataError: if the images do not fit, or a share is missing or of another shape.
        """
        values = self.encode(images)
        parts = []
        for start in range(0, len(values), _BATCH):
            batch = slice(start, start + _BATCH)
            shares = None if client_shares is None else {i: own[batch] for i, own in client_shares.items()}
            parts.append(self._run(values[batch], shares))
        if not parts:
            raise DataError(problem("there is an image to run", got="none", remedy="pass at least one"))
        return Answers(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Answers)))

    def _run(self, values: Words, client_shares: Mapping[int, Words] | None) -> Answers:
        tensors, outside = self.trace(values, client_shares=client_shares)
        public = self.program.public
        form = public.tensors[public.logits]
        logits = decode(tensors[public.logits], fraction_bits=form.fraction_bits, bits=form.ring_bits)
        return Answers(tensors[public.steps[-1].output][:, 0].astype(np.int64), logits, outside)

    def trace(
        self, values: Words, *, client_shares: Mapping[int, Words] | None = None
    ) -> tuple[dict[int, Words], NDArray[np.int64]]:
        """Compute all tensors of the program on encoded images, by id, and `outside` as in `Answers`."""
        public = self.program.public
        wide = {0: unsigned(signed(reduce(values, public.input.ring_bits), public.input.ring_bits), self._bits(0))}
        outside = np.zeros(values.shape[0], dtype=np.int64)
        for step in public.steps:
            if step.circuit is None:
                inputs = [wide[i] for i in step.inputs]
                wide[step.output] = self._linear(step, inputs, side="values", headroom=_HEADROOM)
                if isinstance(step.op, Truncation):
                    outside += self._beyond(step, inputs[0])
                    if client_shares is not None:
                        own = self._share(client_shares, step, values.shape[0])
                        wide[step.output] = self._truncation(step, step.op, inputs[0], wide[step.output], own)
            else:
                client = None if client_shares is None else self._share(client_shares, step, values.shape[0])
                wide[step.output], left = self._circuit(step, step.circuit, wide[step.inputs[0]], client)
                outside += left
        return {i: reduce(own, public.tensors[i].ring_bits) for i, own in wide.items()}, outside

    def _beyond(self, step: Step, y: Words) -> NDArray[np.int64]:
        """Return how many values, per image, are too large for the ring in which they are truncated."""
        ring = self.program.public.tensors[step.inputs[0]].ring_bits
        values = signed(y, self._bits(step.inputs[0]))
        beyond: NDArray[np.int64] = (signed(reduce(y, ring), ring) != values).reshape(len(y), -1).sum(axis=1)
        return beyond

    def _bits(self, tensor: int) -> int:
        """Return the bits in which the twin holds a tensor: its ring and some more, to see what leaves it."""
        return min(MAX_RING_BITS, self.program.public.tensors[tensor].ring_bits + _HEADROOM)

    def _share(self, shares: Mapping[int, Words], step: Step, batch: int) -> Words:
        form = self.program.public.tensors[step.inputs[0]]
        share = shares.get(step.inputs[0])
        if share is None or share.shape != (batch, *form.shape) or share.dtype != np.uint64:
            raise DataError(
                problem(
                    f"the client's share of tensor {step.inputs[0]} is recorded as uint64 {(batch, *form.shape)}",
                    got="none" if share is None else f"{share.dtype} {share.shape}",
                    remedy="record the client's share of every tensor that a circuit or a truncation reads",
                    where=step.name,
                )
            )
        return share

    def _truncation(self, step: Step, op: Truncation, y: Words, rounded: Words, client: Words) -> Words:
        """Return what two shares become where the client's is known: one more, one less, as it is, or grossly wrong."""
        ring, after = (self.program.public.tensors[i].ring_bits for i in (step.inputs[0], step.output))
        server = truncate_server(split(y, client, ring), ring, op.dropped, after)
        shared = server + truncate_client(client, ring, op.dropped, after)
        difference = signed(reduce(shared - rounded, after), after)
        return reduce(rounded + unsigned(difference, MAX_RING_BITS), self._bits(step.output))

    def _circuit(self, step: Step, op: Circuit, y: Words, client: Words | None) -> tuple[Words, NDArray[np.int64]]:
        """Return a circuit's output and how many of its inputs left their range, per image."""
        public = self.program.public
        ring, after = public.tensors[step.inputs[0]].ring_bits, public.tensors[step.output]
        bits, batch, left = self._bits(step.output), y.shape[0], ring - op.dropped
        exact = nearest(y, self._bits(step.inputs[0]), op.dropped)
        own: Words | None = None
        if client is not None:
            own = drop_client(client, ring, op.dropped)
            shared = drop_server(split(y, client, ring), ring, op.dropped) + own
            exact = exact + signed(
                reduce(shared - unsigned(exact, left), left), left
            )  # one more, one less, or as it is
            own = own.reshape(batch, -1)
        exact = exact.reshape(batch, -1)
        t = signed(unsigned(exact, op.width), op.width)
        wraps = t != exact
        if op.tested:
            own = _stand_in(exact, op.width) if own is None else reduce(own, op.width)
            found = rectified(op, split(unsigned(exact, op.width), own, op.width), own)
            lowest, highest = rectified_range(op)
            wraps |= (t < lowest) | (t > highest)
        else:
            found = circuit_function(op, t)
        if op.kept is None:
            return unsigned(found, bits).reshape(batch, *after.shape), wraps.sum(axis=1)
        out = unsigned(t if op.rest_in_circuit else exact, bits)
        out[:, op.kept] = unsigned(found[:, op.kept], bits)
        entered = wraps if op.rest_in_circuit else wraps[:, op.kept]
        return out.reshape(batch, *after.shape), entered.sum(axis=1)


def _stand_in(values: NDArray[np.int64], bits: int) -> Words:
    """Return what stands for the client's share of values, [n, elements]: mixed from value and place, no secret.

    The mixing is that of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    places: Words = np.arange(1, values.shape[1] + 1).astype(np.uint64)
    x: Words = np.add(values.astype(np.uint64), np.multiply(places, np.uint64(0x9E3779B97F4A7C15)))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return reduce(x ^ (x >> np.uint64(31)), bits)


def compare(answers: Answers, logits: Float[np.ndarray, "n classes"], *, margin: float) -> Agreement:
    """Compare a program's answers with the float network's logits.

    Args:
        answers: of the twin.
        logits: of the float network on the same images.
        margin: the stated bound is the largest error times this.
    """
    error = np.abs(answers.logits - logits)
    spread = float(np.sqrt(np.mean(np.var(logits, axis=1))))
    return Agreement(
        images=len(logits),
        same_label=float(np.mean(answers.labels == logits.argmax(axis=1))),
        rms_error=float(np.sqrt(np.mean(np.square(error)))),
        max_error=float(error.max()),
        spread=spread,
        bound=float(error.max()) * margin,
    )
