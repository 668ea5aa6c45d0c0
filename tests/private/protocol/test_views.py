"""What a party sees does not depend on the other's secret; and each of these tests sees it where a mask is left out.

Statistics find blunders, not attacks: the argument is in the documentation of the protocol. False alarms: fewer than
one run in 10^11.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest

from deepreduce.private.circuits import from_bits
from deepreduce.private.homomorphic import Request
from deepreduce.private.homomorphic import server as homomorphic_server
from deepreduce.private.homomorphic.scheme import Scheme, scheme
from deepreduce.private.homomorphic.wire import read_answer, read_ciphertext
from deepreduce.private.program import Program
from deepreduce.private.protocol import Material, offline
from deepreduce.private.protocol.packing import unpack
from deepreduce.private.transfer.messages import HEADER_BYTES
from deepreduce.private.twin import Twin
from deepreduce.private.wire import Kind

from ..homomorphic.exact import noise
from ..service.parties import certificate_in, serving, sure, tiny
from .views import (
    CERTAIN,
    CHANCE,
    SIZE,
    WEIGHT_BITS,
    View,
    alike,
    alike_by_place,
    network,
    octets,
    record,
    uniform,
    uniform_octets,
    with_weights,
)

COUNT = 12
"""Images of a run."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def program() -> Program:
    return network()


def zeros(program: Program) -> np.ndarray:
    return np.zeros((COUNT, 1, SIZE, SIZE), np.uint64)


def extremes(program: Program) -> np.ndarray:
    """The largest values of either sign that the format holds."""
    form = program.public.input
    largest = np.uint64((1 << (form.ring_bits - 1)) - 1)
    values = np.full((COUNT, 1, SIZE, SIZE), largest)
    values[..., ::2] = (1 << form.ring_bits) - 1 - largest
    return values


@pytest.fixture(scope="module")
def views(program: Program) -> list[View]:
    """The same network on two very different batches."""
    return [record(program, zeros(program)), record(program, extremes(program))]


def fixed_masks(patch: pytest.MonkeyPatch, value: int) -> None:
    """Let the client draw constants in place of masks: 0, or all ones for -1."""

    def constant(shape: tuple[int, ...], bits: int) -> np.ndarray:
        return np.full(shape, value & ((1 << bits) - 1), np.uint64)

    patch.setattr(offline, "random_words", constant)


@pytest.fixture(scope="module")
def unmasked(program: Program) -> list[View]:
    """Runs whose client has very different secrets of the offline phase: all masks 0, and all ones."""
    found = []
    for value in (0, -1):
        with pytest.MonkeyPatch.context() as patch:
            fixed_masks(patch, value)
            found.append(record(program, zeros(program)))
    return found


def test_example_the_masked_images_are_uniform_whatever_they_show(
    program: Program, views: list[View], unmasked: list[View]
) -> None:
    bits = program.public.input.ring_bits
    first, second = (view.inputs() for view in views)
    assert uniform(first, bits) > CHANCE and uniform(second, bits) > CHANCE and alike(first, second) > CHANCE
    assert uniform(unmasked[0].inputs(), bits) < CERTAIN  # without masks the test sees it
    again = record(program, extremes(program), same_bundle=True).inputs()
    assert uniform(again[0], bits) > CHANCE  # one use is well
    assert uniform((again[0] - again[1]) & np.uint64((1 << bits) - 1), bits) < CERTAIN  # a second one is not
    assert uniform((second[0] - second[1]) & np.uint64((1 << bits) - 1), bits) > CHANCE


def test_the_servers_shares_of_all_activations_are_uniform(
    program: Program, views: list[View], unmasked: list[View]
) -> None:
    (unit,) = views[0].layout.rounds[0].units
    bits = unit.circuit.words[0].bits
    first, second = (view.servers_shares() for view in views)
    assert uniform(first, bits) > CHANCE and uniform(second, bits) > CHANCE and alike(first, second) > CHANCE
    assert uniform(unmasked[0].servers_shares(), bits) < CERTAIN
    # What travels is uniform as well, at every place.
    bodies = [octets(view.seen_by("server", Kind.WORDS)).reshape(COUNT, -1, 4) for view in views]
    assert bits >= 24  # so that the low three bytes are full
    for body in bodies:
        assert uniform_octets(body[..., :3]) > CHANCE
    assert alike_by_place(*(body[..., :3].reshape(COUNT, -1) for body in bodies)) > CHANCE


def test_sizes_and_order_of_messages_are_the_same(views: list[View], unmasked: list[View]) -> None:
    def of(view: View, party: str) -> list[Any]:
        return [entry for entry in view.order if entry[0] == party]

    for party in ("client", "server"):
        assert of(views[0], party) == of(views[1], party) == of(unmasked[1], party)


def test_the_corrections_hide_the_clients_choices(program: Program, unmasked: list[View]) -> None:
    """All choices are 0 in one run and 1 in the other."""
    samples = [octets(view.seen_by("server", Kind.CORRECTIONS)[::2], HEADER_BYTES) for view in unmasked]
    for sample in samples:
        assert sample.shape[0] == COUNT and uniform_octets(sample) > CHANCE
        assert uniform_octets(sample[0] ^ sample[1]) > CHANCE
    assert alike_by_place(*samples) > CHANCE
    first: dict[int, Any] = {}
    extend = offline.extend_receiver

    def again(state: Any, choices: Any) -> Any:
        """Equal choices give equal corrections, as if the generators began anew. (The states refuse to be used twice.)"""
        state, corrections, labels = extend(state, choices)
        corrections.rows[:] = first.setdefault(choices.size, corrections.rows.copy())
        return state, corrections, labels

    with pytest.MonkeyPatch.context() as patch:
        fixed_masks(patch, 0)
        patch.setattr(offline, "extend_receiver", again)
        reused = record(program, zeros(program)[:2], online_too=False)
    sample = octets(reused.seen_by("server", Kind.CORRECTIONS)[::2], HEADER_BYTES)
    assert uniform_octets(sample[0]) > CHANCE
    assert uniform_octets(sample[0] ^ sample[1]) < CERTAIN


def requests(view: View) -> list[list[np.ndarray]]:
    """Per job, the words of all its requests, [prime, coefficient] each."""
    jobs, bodies = view.layout.jobs, view.seen_by("server", Kind.REQUEST)
    found: list[list[np.ndarray]] = [[] for _ in jobs]
    for number, body in enumerate(bodies):
        job = jobs[number % len(jobs)]
        for one in Request.from_bytes(job.parameters, job.plan.plan, body).bodies:
            found[number % len(jobs)].append(read_ciphertext(job.parameters, one)[0])
    return found


def uniform_words(view: View, job: int, words: np.ndarray) -> float:
    primes = scheme(view.layout.jobs[job].parameters).primes
    return min(
        min(uniform_octets((line & np.uint64(255)).astype(np.uint8)), float(kstest(line / prime, "uniform").pvalue))
        for line, prime in zip(words, primes, strict=True)
    )


def test_the_requests_hide_the_clients_shares(program: Program, unmasked: list[View]) -> None:
    for view in unmasked:
        for job, words in enumerate(requests(view)):
            primes = np.array(scheme(view.layout.jobs[job].parameters).primes, np.uint64)[:, None]
            for one in words[:3]:
                assert uniform_words(view, job, one) > CHANCE
            assert uniform_words(view, job, (words[0] + primes - words[1]) % primes) > CHANCE
    pairs = zip(requests(unmasked[0]), requests(unmasked[1]), strict=True)
    for first, second in pairs:
        assert alike(np.stack(first) & np.uint64(255), np.stack(second) & np.uint64(255)) > CHANCE
    drawn: list[Any] = []
    encrypt = Scheme.encrypt

    def again(self: Scheme, *arguments: Any) -> Any:
        drawn.append(encrypt(self, *arguments) if not drawn else drawn[0])
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        fixed_masks(patch, 0)
        patch.setattr(Scheme, "encrypt", again)
        reused = record(program, zeros(program)[:2], online_too=False)
    words = requests(reused)[0]
    primes = np.array(scheme(reused.layout.jobs[0].parameters).primes, np.uint64)[:, None]
    assert uniform_words(reused, 0, words[0]) > CHANCE
    assert uniform_words(reused, 0, (words[0] + primes - words[1]) % primes) < CERTAIN


# The client's view


@pytest.fixture(scope="module")
def models(program: Program) -> list[Program]:
    """No weights at all, and large ones; the same class wins."""
    return [with_weights(program, 0, seed=1), with_weights(program, 2 ** (WEIGHT_BITS - 1) - 1, seed=2)]


@pytest.fixture(scope="module")
def served(models: list[Program]) -> list[View]:
    found = [record(model, zeros(model)) for model in models]
    for view, model in zip(found, models, strict=True):
        labels = Twin(model).trace(zeros(model))[0][model.public.steps[-1].output][:, 0]
        assert view.labels is not None and (view.labels == 2).all() and (labels == 2).all()
    return found


def decrypted(view: View, job: int) -> np.ndarray:
    """The client's shares of a layer's outputs, as it decrypts them."""
    output = view.layout.jobs[job].step.output
    return np.concatenate([shares[output].reshape(-1) for shares in view.shares])


def noises(view: View, job: int) -> np.ndarray:
    """The noise of the answers at the places that are sent, in units of the modulus."""
    own, found = view.layout.jobs[job], []
    for body in view.seen_by("client", Kind.ANSWER)[job :: len(view.layout.jobs)]:
        answer = homomorphic_server.Answer.from_bytes(own.parameters, own.plan.plan, body)
        for one, (places, _) in zip(answer.bodies, own.plan.plan.results, strict=True):
            words = read_answer(own.parameters, one, places)
            found.append(noise(view.keys[own.parameters], words, "answer")[places].astype(float))
    return np.concatenate(found) / math.prod(scheme(own.parameters).answer_primes)


def test_the_answers_hide_the_weights(models: list[Program], served: list[View]) -> None:
    for job, own in enumerate(served[0].layout.jobs):
        bits = served[0].layout.public.tensors[own.step.output].ring_bits
        for view in served:
            if decrypted(view, job).size > 300:
                assert uniform(decrypted(view, job), bits) > CHANCE
        assert alike(*(decrypted(view, job) for view in served)) > CHANCE
        assert alike(*(noises(view, job) for view in served)) > CHANCE
    # The second polynomial comes first, behind the header.
    second = [octets(view.seen_by("client", Kind.ANSWER)[::2], 1000)[:, :2000] for view in served]
    assert alike_by_place(*second) > CHANCE
    with pytest.MonkeyPatch.context() as patch:
        draw = homomorphic_server.draw_share
        patch.setattr(homomorphic_server, "draw_share", lambda *arguments: np.zeros_like(draw(*arguments)))
        bare = record(models[0], zeros(models[0])[:3], online_too=False)
    bits = bare.layout.public.tensors[bare.layout.jobs[0].step.output].ring_bits
    assert uniform(decrypted(bare, 0), bits) < CERTAIN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheme, "flood", lambda self: np.zeros((len(self.primes), self.parameters.degree), np.uint64))
        dry = record(models[1], zeros(models[1])[:3], online_too=False)
    assert alike(noises(dry, 0), noises(served[1], 0)) < CERTAIN


def test_tables_and_labels_hide_the_servers_numbers(models: list[Program], served: list[View]) -> None:
    (unit,) = served[0].layout.rounds[0].units
    # Of the ReLUs; tables alternate with those of the arg-max, labels come before them.
    for kind, chosen in ((Kind.TABLES, slice(None, None, 2)), (Kind.LABELS, slice(COUNT))):
        samples = [octets(view.seen_by("client", kind)[chosen]) for view in served]
        if kind == Kind.LABELS:  # behind the labels come the openings
            samples = [sample[:, : unit.garbler_labels_bytes] for sample in samples]
        for sample in samples:
            assert uniform_octets(sample) > CHANCE
            assert uniform_octets(sample[0] ^ sample[1]) > CHANCE
        assert alike_by_place(*samples) > CHANCE
    # Labels that are sent twice for other numbers, which one bundle for two images would do, show which bits differ.
    twice = record(models[1], extremes(models[1]), same_bundle=True)
    sample = octets(twice.seen_by("client", Kind.LABELS)[:COUNT])[:, : unit.garbler_labels_bytes]
    assert uniform_octets(sample[0]) > CHANCE
    assert uniform_octets(sample[0] ^ sample[1]) < CERTAIN
    made: dict[int, Any] = {}
    garble = offline.garble

    def again(circuit: Any, **options: Any) -> Any:
        if options["tweak"].layer not in made:
            made[options["tweak"].layer] = garble(circuit, **options)
        return made[options["tweak"].layer]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "garble", again)
        reused = record(models[0], zeros(models[0])[:2], online_too=False)
    sample = octets(reused.seen_by("client", Kind.TABLES)[::2])
    assert uniform_octets(sample[0]) > CHANCE
    assert uniform_octets(sample[0] ^ sample[1]) < CERTAIN


def openings(view: View) -> np.ndarray:
    """What travels of the values that go around the circuit, [images, elements]."""
    (unit,) = view.layout.rounds[0].units
    bodies = octets(view.seen_by("client", Kind.LABELS)[: len(view.client)], unit.garbler_labels_bytes)
    return unpack(bodies, (len(bodies), unit.instances), unit.circuit.words[0].bits)


def test_what_goes_around_the_circuit_is_hidden_from_the_client(models: list[Program], served: list[View]) -> None:
    bits = served[0].layout.rounds[0].units[0].circuit.words[0].bits
    first, second = map(openings, served)
    assert uniform(first, bits) > CHANCE and uniform(second, bits) > CHANCE and alike(first, second) > CHANCE
    garble = offline.garble

    def bare(circuit: Any, **options: Any) -> Any:
        made = garble(circuit, **options)
        return replace(made, factors=np.zeros_like(made.factors))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "garble", bare)
        seen = openings(record(models[0], zeros(models[0])))
    assert uniform(seen, bits) < CERTAIN
    twice = openings(record(models[1], extremes(models[1]), same_bundle=True))
    assert uniform((twice[0] - twice[1]) & np.uint64((1 << bits) - 1), bits) < CERTAIN


def multiples(view: View, decoding: int) -> tuple[np.ndarray, np.ndarray]:
    """What travels back for the sign, of all ReLUs with that decoding bit, and the server's factors of these."""
    (unit,) = view.layout.rounds[0].units
    (message,) = view.seen_by("server", Kind.WORDS)
    bits, number = unit.circuit.words[0].bits, unit.number
    found = unpack(message, (len(view.client), 2, unit.instances), bits)[:, 1]
    chosen = np.stack([memory.array(f"decoding.{number}")[:, 0] for memory in view.server]) == decoding
    factors = np.stack([memory.array(f"factors.{number}").astype(np.uint64) for memory in view.server])
    return found[chosen], factors[chosen]


def test_the_servers_choice_shows_it_one_of_two_words(program: Program, views: list[View]) -> None:
    """What travels back for the sign is uniform whichever word the server may open; the factor makes it so."""
    (unit,) = views[0].layout.rounds[0].units
    bits, ring = unit.circuit.words[0].bits, np.uint64((1 << unit.circuit.words[0].bits) - 1)
    for decoding in (0, 1):
        first, second = (multiples(view, decoding)[0] for view in views)
        assert uniform(first, bits) > CHANCE and uniform(second, bits) > CHANCE and alike(first, second) > CHANCE
    with pytest.MonkeyPatch.context() as patch:
        nothing = np.zeros((unit.instances, 1), np.uint64)
        patch.setattr(offline, "_offered", lambda *arguments: (nothing, nothing))
        told, factors = multiples(record(program, zeros(program)), 0)
    # Where b is p the server then sees the value minus its own factor, and minus that where it is not.
    near = [np.minimum(x, (np.uint64(0) - x) & ring) for x in ((told + factors) & ring, (factors - told) & ring)]
    assert uniform(np.minimum(*near), bits - 1) < CERTAIN


def test_words_and_colours_of_the_client_hide_what_they_stand_for(served: list[View]) -> None:
    (unit,) = served[0].layout.rounds[0].units
    bits, ring = unit.circuit.words[0].bits, np.uint64((1 << unit.circuit.words[0].bits) - 1)
    words = [np.stack([one.words[:, 0] & ring for one in view.evaluated[:COUNT]]) for view in served]
    assert uniform(words[0], bits) > CHANCE and uniform(words[1], bits) > CHANCE and alike(*words) > CHANCE
    for view in served:
        colours = np.stack([one.colours[:, 0] for one in view.evaluated[:COUNT]])
        decoding = np.stack([memory.array(f"decoding.{unit.number}")[:, 0] for memory in view.server])
        assert binomtest(int(colours.sum()), colours.size).pvalue > CHANCE
        assert binomtest(int(decoding.sum()), decoding.size).pvalue > CHANCE
    seen = []
    for view in served:
        colours = np.concatenate([one.colours for one in view.evaluated[COUNT:]])
        decoding = np.concatenate([memory.array(f"decoding.{view.layout.ending.number}") for memory in view.server])
        assert colours.shape == (COUNT, 2)
        assert (from_bits(colours ^ decoding) == 2).all()  # what the decoding hides
        seen.append(colours)
    assert len(np.unique(np.concatenate(seen), axis=0)) > 1  # 24 classes are all alike; 24 masked ones once in 4^23


# Nothing is used twice, and nothing is told


def test_bundles_of_a_session_share_no_secret_but_the_offset(views: list[View]) -> None:
    for view in views:
        (delta,) = {memory.array("delta").tobytes() for memory in view.server}
        assert delta != bytes(16)
        for unit in view.layout.units:
            assert len({memory.array(f"seed.{unit.number}").tobytes() for memory in view.server}) == COUNT
        seeds = {memory.array(f"seed.{unit.number}").tobytes() for memory in view.server for unit in view.layout.units}
        assert len(seeds) == COUNT * len(view.layout.units)
        own = np.concatenate(
            [
                memory.array(f"labels.{unit.number}").reshape(-1, 16)
                for memory in view.client
                for unit in view.layout.units
            ]
        )
        sent = np.concatenate(
            [np.frombuffer(body, np.uint8).reshape(-1, 16) for body in view.seen_by("client", Kind.LABELS)]
        )
        labels = np.concatenate([own, sent])
        assert len(np.unique(labels, axis=0)) == len(labels)
        for party, names in (
            (view.client, ("input", "masks.0", "logits")),
            (view.server, ("offsets.0", "share.1", "share.4")),
        ):
            for name in names:
                if name in party[0].data:
                    assert len({memory.array(name).tobytes() for memory in party}) == COUNT, name
    deltas = {view.server[0].array("delta").tobytes() for view in views}
    starts = {view.sessions[0].start for view in views}
    assert len(deltas) == len(starts) == len(views)


def test_no_secret_is_in_a_representation(views: list[View]) -> None:
    view = views[0]
    server, client = sorted(view.sessions, key=lambda state: type(state).__name__, reverse=True)
    material = Material(0, server.start, view.server[0])
    keys = next(iter(view.keys.values()))
    for thing in (server, client, material, server.transfers, client.transfers, keys, view.layout, client.numbers):
        shown = repr(thing)
        for secret in (server.delta, view.server[0].array("seed.0"), np.frombuffer(keys.secret, np.uint8)[:16]):
            for written in (
                repr(secret),
                str(secret),
                repr(secret.tobytes()),
                secret.tobytes().hex(),
                str(secret.tolist()),
            ):
                assert written.strip("b'[]") not in shown
        if thing is not view.layout:
            assert "array(" not in shown and len(shown) < 1000


def test_nothing_but_counts_and_times_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    images, labels = sure(tiny(), 3)
    with serving(tiny(), tmp_path / "party", certificate_in(tmp_path / "tls")) as party, party.client() as client:
        client.prepare(1)
        assert np.array_equal(client.infer(images).labels, labels)
    number = r"\d+(\.\d{3})?"
    known = rf"127\.0\.0\.1: (prepared {number} bundles|3 images, linear {number} s, circuits {number} s, channel {number} s|gone)"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) >= 3 and all(re.fullmatch(known, message) for message in messages), messages
