"""What a party sees does not depend on the other's secret; and each of these tests sees it where a mask is left out.

Statistics find blunders, not attacks: the argument is in the documentation of the protocol. False alarms: fewer than
one run in 10^11.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest, kstest

from deepreduce.private.circuits import from_bits
from deepreduce.private.homomorphic import Answer, Request, encryption
from deepreduce.private.homomorphic.draws import flood
from deepreduce.private.homomorphic.encryption import Encryptor
from deepreduce.private.homomorphic.scheme import scheme
from deepreduce.private.homomorphic.wire import read_answer, read_ciphertext
from deepreduce.private.program import Program
from deepreduce.private.protocol import Material, linear, offline
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

    for module in (linear, offline):
        patch.setattr(module, "random_words", constant)


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
    bits = views[0].layout.rounds[0].units[0].bits
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
    encrypt = Encryptor.encrypt

    def again(self: Encryptor, *arguments: Any) -> Any:
        drawn.append(encrypt(self, *arguments) if not drawn else drawn[0])
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        fixed_masks(patch, 0)
        patch.setattr(Encryptor, "encrypt", again)
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
        answer = Answer.from_bytes(own.parameters, own.plan.plan, body)
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
        draw = encryption.draw_share
        patch.setattr(encryption, "draw_share", lambda *arguments: np.zeros_like(draw(*arguments)))
        bare = record(models[0], zeros(models[0])[:3], online_too=False)
    bits = bare.layout.public.tensors[bare.layout.jobs[0].step.output].ring_bits
    assert uniform(decrypted(bare, 0), bits) < CERTAIN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encryption, "flood", lambda parameters: np.zeros_like(flood(parameters)))
        dry = record(models[1], zeros(models[1])[:3], online_too=False)
    assert alike(noises(dry, 0), noises(served[1], 0)) < CERTAIN


def test_tables_and_labels_hide_the_servers_numbers(models: list[Program], served: list[View]) -> None:
    """Of the arg-max: all tables; its labels come after the questions of the ReLUs."""
    for kind, chosen in ((Kind.TABLES, slice(None)), (Kind.LABELS, slice(COUNT, None))):
        samples = [octets(view.seen_by("client", kind)[chosen]) for view in served]
        for sample in samples:
            assert len(sample) == COUNT and uniform_octets(sample) > CHANCE
            assert uniform_octets(sample[0] ^ sample[1]) > CHANCE
        assert alike_by_place(*samples) > CHANCE
    # Labels that are sent twice for other numbers, which one bundle for two images would do, show which bits differ.
    twice = record(models[1], extremes(models[1]), same_bundle=True)
    sample = octets(twice.seen_by("client", Kind.LABELS)[COUNT:])
    assert uniform_octets(sample[0]) > CHANCE
    assert uniform_octets(sample[0] ^ sample[1]) < CERTAIN
    made: dict[Any, Any] = {}
    garble = offline.garble

    def again(circuit: Any, **options: Any) -> Any:
        name = circuit, options["tweak"].layer, options["tweak"].start
        if name not in made:
            made[name] = garble(circuit, **options)
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "garble", again)
        reused = record(models[0], zeros(models[0])[:2], online_too=False)
    sample = octets(reused.seen_by("client", Kind.TABLES))
    assert uniform_octets(sample[0]) > CHANCE
    assert uniform_octets(sample[0] ^ sample[1]) < CERTAIN


def opened(view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the client can make of the questions: places with its own upper bits added; e_Y; e_P and e_Q."""
    (unit,) = view.layout.rounds[0].units
    questions, low = view.questions(), unit.index_bits
    values = np.stack([memory.array(f"values.{unit.number}").astype(np.uint64) for memory in view.client])
    upper = values >> np.uint64(unit.op.width - unit.op.tested)
    places = np.stack([one.places & np.uint64((1 << low) - 1) for one in questions])
    sums = (places + upper) & np.uint64((1 << low) - 1)
    return sums, np.stack([one.product for one in questions]), np.stack([one.wraps for one in questions])


def test_the_questions_are_uniform_to_the_client(models: list[Program], served: list[View]) -> None:
    (unit,) = served[0].layout.rounds[0].units
    for part, bits in enumerate((unit.index_bits, unit.bits, unit.upper_bits)):
        first, second = (opened(view)[part] for view in served)
        assert uniform(first, bits) > CHANCE and uniform(second, bits) > CHANCE and alike(first, second) > CHANCE
    told = [np.stack([one.places >> np.uint64(unit.index_bits) for one in view.questions()]) for view in served]
    assert all(binomtest(int(bits.sum()), bits.size).pvalue > CHANCE for bits in told)
    offered, draw = offline._offered, offline.random_words

    def bare(task: Any, *arguments: Any, reverse: bool = False) -> Any:
        offsets, factors = offered(task, *arguments, reverse=reverse)
        return offsets, factors if reverse else np.zeros_like(factors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "_offered", bare)
        seen = opened(record(models[0], zeros(models[0])))
    assert uniform(seen[0], unit.index_bits) > CHANCE  # the places have a mask of their own
    assert uniform(seen[1], unit.bits) < CERTAIN and uniform(seen[2], unit.upper_bits) < CERTAIN

    def indices_too(shape: tuple[int, ...], bits: int) -> np.ndarray:
        return np.zeros(shape, np.uint64) if bits == unit.index_bits else draw(shape, bits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline, "random_words", indices_too)
        seen = opened(record(models[0], zeros(models[0])))
    assert uniform(seen[0], unit.index_bits) < CERTAIN and uniform(seen[1], unit.bits) > CHANCE
    twice = [
        one.places & np.uint64((1 << unit.index_bits) - 1)
        for one in record(models[1], extremes(models[1]), same_bundle=True).questions()
    ]
    assert uniform(twice[0], unit.index_bits) > CHANCE and uniform(twice[0] ^ twice[1], unit.index_bits) < CERTAIN


def returned(view: View, choice: int) -> np.ndarray:
    """The words t of all ReLUs for which the server has that one of the pads."""
    (unit,) = view.layout.rounds[0].units
    words = np.stack([one.words[1] for one in view.replies()])
    choices = np.stack([memory.array(f"choices.{unit.number}") for memory in view.server])
    return words[choices >> unit.index_bits == choice]


def no_pads(patch: pytest.MonkeyPatch) -> None:
    """Let the client offer zeros where the server chooses."""
    offered = offline._offered

    def bare(task: Any, *arguments: Any, reverse: bool = False) -> Any:
        found = offered(task, *arguments, reverse=reverse)
        return tuple(map(np.zeros_like, found)) if reverse else found

    patch.setattr(offline, "_offered", bare)


def test_the_servers_pad_shows_it_nothing_of_the_other(program: Program, views: list[View]) -> None:
    """What travels back for the server's own bit is uniform whichever pad the server has."""
    bits = views[0].layout.rounds[0].units[0].bits
    for choice in (0, 1):
        first, second = (returned(view, choice) for view in views)
        assert uniform(first, bits) > CHANCE and uniform(second, bits) > CHANCE and alike(first, second) > CHANCE
    with pytest.MonkeyPatch.context() as patch:
        no_pads(patch)
        told = returned(record(program, zeros(program)), 0)
    assert uniform(told, bits) < CERTAIN


def test_the_flips_are_even(views: list[View], unmasked: list[View]) -> None:
    def chances(view: View) -> list[float]:
        lines = np.stack([one.flips for one in view.replies()]).swapaxes(0, 1)
        assert len(lines) == 2
        return [binomtest(int(line.sum()), line.size).pvalue for line in lines]

    assert min(chance for view in views for chance in chances(view)) > CHANCE
    assert chances(unmasked[0])[1] < CERTAIN  # without coins they are the client's bits, and one of them is rarely 1


def test_what_permutes_the_tables_is_uniform(program: Program, views: list[View]) -> None:
    (unit,) = views[0].layout.rounds[0].units
    samples = [octets(view.seen_by("server", Kind.TABLES)) for view in views]
    for sample in samples:
        assert sample.shape == (COUNT, unit.permuting_bytes) and uniform_octets(sample) > CHANCE
    assert alike_by_place(*samples) > CHANCE
    with pytest.MonkeyPatch.context() as patch:
        no_pads(patch)
        told = record(program, zeros(program), online_too=False)
    assert uniform_octets(octets(told.seen_by("server", Kind.TABLES))) < CERTAIN


def test_the_colours_of_the_client_hide_what_they_stand_for(served: list[View]) -> None:
    seen = []
    for view in served:
        colours = np.concatenate([one.colours for one in view.evaluated])
        decoding = np.concatenate([memory.array(f"decoding.{view.layout.ending.number}") for memory in view.server])
        assert colours.shape == (COUNT, 2)
        assert (from_bits(colours ^ decoding) == 2).all()  # what the decoding hides
        seen.append(colours)
    assert len(np.unique(np.concatenate(seen), axis=0)) > 1  # 24 classes are all alike; 24 masked ones once in 4^23


# Nothing is used twice, and nothing is told


CLIENTS = ("masks", "table", "values", "coins", "products", "wraps", "pads")
SERVERS = ("table", "choices", "factors", "offsets", "upper_factors", "upper_offsets", "constants")


def test_bundles_of_a_session_share_no_secret_but_the_offset(views: list[View]) -> None:
    for view in views:
        (delta,) = {memory.array("delta").tobytes() for memory in view.server}
        assert delta != bytes(16)
        ending = view.layout.ending.number
        assert len({memory.array(f"seed.{ending}").tobytes() for memory in view.server}) == COUNT
        own = np.concatenate([memory.array(f"labels.{ending}").reshape(-1, 16) for memory in view.client])
        sent = np.concatenate(
            [np.frombuffer(body, np.uint8).reshape(-1, 16) for body in view.seen_by("client", Kind.LABELS)[COUNT:]]
        )
        labels = np.concatenate([own, sent])
        assert len(np.unique(labels, axis=0)) == len(labels)
        for party, names in (
            (view.client, ("input", "logits", *(f"{name}.0" for name in CLIENTS))),
            (view.server, ("share.1", *(f"{name}.0" for name in SERVERS))),
        ):
            for name in names:
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
        for secret in (server.delta, view.server[0].array("table.0")[:8], np.frombuffer(keys.secret, np.uint8)[:16]):
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
    known = rf"127\.0\.0\.1: (prepared {number} of {number} bundles|images: 3, linear {number} s, circuits {number} s, channel {number} s|gone)"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) >= 3 and all(re.fullmatch(known, message) for message in messages), messages
