"""Both parties of a secure run in one process, without cryptography: who holds which share, and when.

What stands here for the cryptography: the client's random share of a weighted layer's output comes out of the
homomorphic phase (Enc(W·x_C - s)); a circuit reveals nothing but the server's new share. Everything else is what
the two parties compute themselves. Tests hold the secure run, and the twin that replays it, against this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..program.evaluate import LinearEvaluator, circuit_function, rectified
from ..program.operations import Circuit
from ..program.program import Program, Step, is_argmax
from ..ring import Words, drop_client, drop_server, random_words, reconstruct, reduce, signed, split, unsigned

Draw = Callable[[tuple[int, ...], int], Words]
"""(shape, bits) to uniform ring elements."""


@dataclass(frozen=True, eq=False)
class Transcript:
    """What both parties held, by tensor id, and the class of each image.

    Attributes:
        server, client: shares, [n, *shape] mod 2^k for each tensor's ring; without the arg-max's output.
        labels: the classes.
    """

    server: dict[int, Words]
    client: dict[int, Words]
    labels: Words


def play(program: Program, values: Words, *, draw: Draw = random_words) -> Transcript:
    """Run a program on shares.

    Args:
        program: the server's.
        values: encoded images, see `Twin.encode`.
        draw: where masks come from; the operating system unless a test wants to repeat a run.
    """
    public = program.public
    linear = LinearEvaluator(public, program.weights)
    batch = values.shape[0]
    mask = draw(values.shape, public.input.ring_bits)
    client, server = {0: mask}, {0: split(values, mask, public.input.ring_bits)}
    labels = np.zeros(batch, dtype=np.uint64)
    for step in public.steps:
        form = public.tensors[step.output]
        if step.circuit is not None:
            own = _circuit(program, step, step.circuit, server, client, draw)
            if is_argmax(step):
                labels = own[0][:, 0]
            else:
                server[step.output], client[step.output] = own
            continue
        at_server = linear(step, [server[i] for i in step.inputs], side="server")
        at_client = linear(step, [client[i] for i in step.inputs], side="client")
        if step.weighted:  # offline: the client learns W·x_C - s and nothing else
            s = draw((batch, *form.shape), form.ring_bits)
            at_client = split(at_client, s, form.ring_bits)
            at_server = reconstruct(at_server, s, form.ring_bits)
        server[step.output], client[step.output] = at_server, at_client
    return Transcript(server, client, labels)


def _circuit(
    program: Program, step: Step, op: Circuit, server: dict[int, Words], client: dict[int, Words], draw: Draw
) -> tuple[Words, Words]:
    """Return (server's, client's) share of a circuit's output; for the arg-max (class, nothing)."""
    before, after = program.public.tensors[step.inputs[0]], program.public.tensors[step.output]
    bits, batch = before.ring_bits, server[step.inputs[0]].shape[0]
    dropped_s = drop_server(server[step.inputs[0]], bits, op.dropped).reshape(batch, -1)
    dropped_c = drop_client(client[step.inputs[0]], bits, op.dropped).reshape(batch, -1)
    entering = reduce(dropped_s, op.width), reduce(dropped_c, op.width)
    t = signed(reconstruct(*entering, op.width), op.width)
    if is_argmax(step):
        return unsigned(circuit_function(op, t), 62), np.zeros((batch, 0), dtype=np.uint64)
    k = after.ring_bits
    found = rectified(op, *entering) if op.tested else circuit_function(op, t)
    if op.kept is None:
        new = draw((batch, after.size), k)
        out = split(unsigned(found, k), new, k)
    else:
        out, new = reduce(dropped_s, k), reduce(dropped_c, k)  # the rest: both keep what they have
        if op.rest_in_circuit:
            new = draw((batch, after.size), k)
            out = split(unsigned(t, k), new, k)
        fresh = draw((batch, len(op.kept)), k)
        new[:, op.kept] = fresh
        out[:, op.kept] = split(unsigned(found[:, op.kept], k), fresh, k)
    return out.reshape(batch, *after.shape), new.reshape(batch, *after.shape)
