"""The estimate of our engine against real runs: gates, bytes, round trips and storage are equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deepreduce.errors import UsageError
from deepreduce.private.estimate import LINKS, Constants, Cost, Link, constants_of, our_cost, ours
from deepreduce.private.program import Program, make_program
from deepreduce.private.protocol import make_layout
from deepreduce.private.protocol import offline as offline_phase
from deepreduce.private.service import messages
from deepreduce.private.twin import Twin

from ..program.small import Lambda, images, settle
from ..protocol.harness import residual, run, weight_bits

BOTH = list(LINKS.values())


def cost_of(program: Program, **more: object) -> Cost:
    return our_cost(make_layout(program.public, weight_bits=weight_bits(program)), BOTH, **more)


def compare(program: Program, count: int, monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Run `count` images for real and hold the estimate against what travelled, was garbled, and was stored."""
    gates: list[int] = []
    real = offline_phase.garble

    def counting(circuit, *, instances, **named):
        gates.append(instances * circuit.and_gates)
        return real(circuit, instances=instances, **named)

    monkeypatch.setattr(offline_phase, "garble", counting)
    shape = program.public.input.shape
    got = run(program, Twin(program).encode(images(count, *shape, seed=5).numpy()))
    cost = cost_of(program)
    assert cost.offline is not None and cost.setup is not None
    assert sum(gates) == count * cost.offline.and_gates == count * cost.online.and_gates
    (client, server), offline = got.offline, cost.offline
    assert client.sent_bytes == cost.setup.sent_bytes + count * offline.sent_bytes == server.received_bytes
    assert client.received_bytes == cost.setup.received_bytes + count * offline.received_bytes == server.sent_bytes
    assert client.turns == cost.setup.round_trips + count * offline.round_trips
    if count == 1:  # further images share the frames of the client
        client, server = got.online
        assert (client.sent_bytes, client.received_bytes) == (cost.online.sent_bytes, cost.online.received_bytes)
        assert (server.received_bytes, server.sent_bytes) == (cost.online.sent_bytes, cost.online.received_bytes)
        assert cost.online.bytes == client.sent_bytes + client.received_bytes
    assert got.online[0].turns == cost.online.round_trips
    for memory, stored in ((got.client, cost.client_bytes), (got.server, cost.server_bytes)):
        assert all(sum(array.nbytes for array in one.data.values()) == stored for one in memory)
    return cost


@pytest.mark.parametrize("count", [1, 2])
def test_example_a_residual_network_costs_what_the_estimate_says(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = compare(residual(), count, monkeypatch)
    # The first ReLU layer, four levels of the pooling, of which the second ReLU layer is a part, and the arg-max.
    assert cost.protocol == "ours" and cost.online.round_trips == 6


def test_units_that_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepreduce.private.protocol.units.PORTION", 64)
    compare(residual(), 1, monkeypatch)


def test_masks_and_long_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    layers = {
        "a": nn.Conv2d(1, 6, 3, padding=1), "relu": nn.ReLU(), "b": nn.Conv2d(6, 4, 3, padding=1),
        "c": nn.Conv2d(4, 6, 3, stride=2, padding=1), "fc": nn.Linear(6 * 9, 4),
    }  # fmt: skip
    network = settle(
        Lambda(lambda net, x: net.fc(net.c(net.b(net.relu(net.a(x)))).flatten(1)), **layers), images(64, 1, 6, 6)
    )
    mask = np.random.default_rng(0).random((6, 6, 6)) < 0.4
    cost = compare(make_program(network, images(64, 1, 6, 6), masks={"relu": mask}), 1, monkeypatch)
    assert cost.online.round_trips == 2


def test_a_network_without_any_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    network = settle(Lambda(lambda net, x: net.fc(x.flatten(1)), fc=nn.Linear(48, 3)), images(64, 3, 4, 4))
    assert compare(make_program(network, images(64, 3, 4, 4)), 1, monkeypatch).online.round_trips == 1


def only(**values: float) -> Constants:
    """Constants that are all zero but some."""
    known = constants_of("ours")
    assert set(values) <= set(known.values)
    return replace(known, values=dict.fromkeys(known.values, 0.0) | values)


def test_each_constant_is_multiplied_by_its_number() -> None:
    program = residual()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    looked_up = [unit for unit in layout.units if unit.circuit is None]
    garbled = [unit for unit in layout.units if unit.circuit is not None]
    hashes, found = sum(unit.hashes for unit in garbled), sum(unit.instances for unit in looked_up)
    assert found > 0 and hashes > 0

    def seconds(phase: str, cores: int = 1, **values: float) -> float:
        return getattr(our_cost(layout, BOTH, cores=cores, constants=only(**values)), phase).compute_seconds

    assert seconds("online", evaluate_seconds_per_hash=1.0) == pytest.approx(hashes)
    assert seconds("online", evaluate_seconds_per_hash=1.0, cores=2) == pytest.approx(hashes / 2)
    assert seconds("offline", garble_seconds_per_hash=1.0) == pytest.approx(hashes)
    labels = sum(unit.garbler_labels_bytes // 16 for unit in garbled)
    assert seconds("online", label_seconds=1.0) == pytest.approx(labels)
    assert seconds("online", word_seconds=1.0) == pytest.approx(sum(u.instances for u in garbled) - 1)  # no arg-max
    for name in ("ask", "reply", "output"):
        assert seconds("online", **{f"{name}_seconds": 1.0}) == pytest.approx(found)
    choices, pads = sum(u.choices for u in looked_up), sum(u.choices * u.pad_words for u in looked_up)
    products = sum(unit.transfers for unit in looked_up)
    assert choices == 8 * found and products == 3 * found
    for name in ("offer", "choose"):  # of both directions, side by side in part
        assert max(pads, products) <= seconds("offline", **{f"{name}_seconds": 1.0}) <= pads + products
    tables = sum(u.instances * u.index_bits * u.table_words for u in looked_up)
    assert tables <= seconds("offline", permute_seconds=1.0) <= 2 * tables
    narrow, wide = seconds("online", narrow_mac_seconds=1.0), seconds("online", mac_seconds=1.0)
    rings = {
        step.output: program.public.tensors[step.output].ring_bits for step in program.public.steps if step.weighted
    }
    assert narrow + wide == pytest.approx(program.public.macs)
    assert (narrow > 0, wide > 0) == (min(rings.values()) <= 32, max(rings.values()) > 32)
    weighted = sum(step.weighted for step in program.public.steps)
    for name, count in (("layer", weighted), ("round", len(layout.rounds)), ("inference", 1)):
        fixed = {f"{name}_seconds": 1.0}
        assert seconds("online", **fixed) == seconds("online", cores=8, **fixed) == count
        assert seconds("offline", **fixed) == seconds("setup", **fixed) == 0
    transfers = sum(unit.transfers for unit in layout.units)
    for role in ("client", "server"):
        taken = seconds("offline", **{f"transfer_{role}_seconds": 1.0})
        assert max(transfers, choices) <= taken <= transfers + choices
    primes = len(layout.jobs[0].parameters.prime_bits)
    products = sum(job.plan.plan.products for job in layout.jobs)
    assert seconds("offline", **{f"product_{primes}_primes_seconds": 1.0}) == pytest.approx(products)
    requests = sum(job.plan.plan.requests for job in layout.jobs)
    assert seconds("offline", **{f"encrypt_{primes}_primes_seconds": 1.0}) == pytest.approx(requests)
    assert seconds("setup", keys_seconds=1.0) == len(layout.parameters)


@pytest.mark.parametrize("together", [2, 6])
def test_what_each_has_of_a_lot(together: int) -> None:
    program = residual()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    alone, each = our_cost(layout, BOTH), our_cost(layout, BOTH, together=together)
    assert each.online == alone.online and each.setup == alone.setup
    frames = 16 * (2 * len(layout.jobs_together(together)) + together * (3 * len(layout.units) + 2))
    assert 0 <= together * each.offline.bytes - layout.offline_bytes(together) <= frames + 2 * together
    primes = len(layout.jobs[0].parameters.prime_bits)
    shared = [job.plan.plan for job in layout.jobs_together(together) if job.plan.images > 1]
    assert shared and len({job.parameters for job in layout.jobs}) == 1

    def seconds(name: str) -> float:
        only_this = only(**{f"{name}_{primes}_primes_seconds": 1.0})
        return our_cost(layout, BOTH, cores=1, together=together, constants=only_this).offline.compute_seconds

    assert seconds("tap") == pytest.approx(sum(p.answers * p.weights_per_answer for p in shared) / together)
    assert seconds("spread") == pytest.approx(sum(p.requests for p in shared) / together)
    requests = sum(job.plan.plan.requests for job in layout.jobs_together(together))
    assert seconds("encrypt") == pytest.approx(requests / together)


def test_lots_are_as_large_as_the_protocol_lets_them_be() -> None:
    assert ours.MAX_TOGETHER == messages.MAX_TOGETHER


@pytest.mark.parametrize("together", [0, 1025])
def test_lots_of_no_or_too_many_bundles_are_refused(together: int) -> None:
    with pytest.raises(UsageError, match=r"bundles are prepared together.*Do: .*--together"):
        cost_of(residual(), together=together)


def test_a_network_with_next_to_nothing_to_compute_takes_time_nevertheless() -> None:
    """Per round of circuits between 0.1 ms and 10 ms, on whatever machine the constants were measured."""
    program = residual()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    online = our_cost(layout, BOTH).online
    rounds = len(layout.rounds)
    assert rounds * 1e-4 < online.compute_seconds < rounds * 1e-2
    known = constants_of("ours")
    fixed = {name: known[f"{name}_seconds"] for name in ("layer", "round", "inference")}
    assert all(value > 0 for value in fixed.values())
    without = replace(known, values=known.values | {f"{name}_seconds": 0.0 for name in fixed})
    least = rounds * fixed["round"] + fixed["inference"]
    assert our_cost(layout, BOTH, constants=without).online.compute_seconds <= online.compute_seconds - least


def test_the_client_encrypts_while_the_server_answers() -> None:
    program = residual()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    primes = len(layout.jobs[0].parameters.prime_bits)
    encrypt, answer = f"encrypt_{primes}_primes_seconds", f"answer_{primes}_primes_seconds"
    alone = [our_cost(layout, BOTH, constants=only(**{name: 1.0})).offline for name in (encrypt, answer)]
    together = our_cost(layout, BOTH, constants=only(**{encrypt: 1.0, answer: 1.0})).offline
    assert max(one.compute_seconds for one in alone) < together.compute_seconds
    assert together.compute_seconds < sum(one.compute_seconds for one in alone)


def test_over_a_link_a_phase_lasts_between_its_longest_part_and_their_sum() -> None:
    cost = cost_of(residual())
    for phase in (cost.setup, cost.offline, cost.online):
        for link in LINKS.values():
            seconds = phase.seconds[link.name]
            waiting = phase.round_trips * link.round_trip_seconds
            assert seconds >= max(phase.compute_seconds, waiting, 8 * phase.bytes / link.bits_per_second)
            # half a round trip more: the last message of the set-up goes one way
            most = link.seconds(compute=phase.compute_seconds, size=phase.bytes, round_trips=phase.round_trips + 1)
            assert seconds <= most + 1e-9


def test_a_slow_link_of_ones_own() -> None:
    program = residual()
    layout = make_layout(program.public, weight_bits=weight_bits(program))
    online = our_cost(layout, [Link("modem", 1e4, 0.3)]).online
    assert online.seconds["modem"] > 8 * online.bytes / 1e4


def test_no_core_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at least one core.*Got: 0.*Do: "):
        cost_of(residual(), cores=0)
