"""By how many bits layers decide their signs: the estimate against programs that run, and how bits are shared out."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepreduce.errors import NetworkError
from deepreduce.networks import mobilenet_v1
from deepreduce.private.program import Circuit, FormatSettings, Program, build, finer, make_program
from deepreduce.private.program.formats import Formats
from deepreduce.private.program.graph import Graph, Node
from deepreduce.private.program.plan import Plan, plan
from deepreduce.private.program.program import Agreement
from deepreduce.private.program.signs import (
    EXACT,
    SignErrors,
    decide,
    lookup_bytes,
    online_bytes,
    share_bits,
    sign_errors,
    total,
)
from deepreduce.private.protocol import make_layout
from deepreduce.private.protocol.units import LookupUnit
from deepreduce.private.twin import Twin

from .small import FINE, Lambda, images, photographs, settle


def relus(program: Program) -> list[Circuit]:
    """Return the ReLU circuits of a program, in order."""
    return [step.circuit for step in program.public.steps[:-1] if step.circuit is not None]


def three_layers() -> nn.Module:
    """Make a network with three ReLU layers of very different size, the last of which has the most weight."""
    torch.manual_seed(0)
    layers = {
        "a": nn.Conv2d(3, 8, 3, padding=1), "b": nn.Conv2d(8, 8, 3, stride=2, padding=1),
        "c": nn.Conv2d(8, 6, 3, stride=2, padding=1), "fc": nn.Linear(24, 5),
    }  # fmt: skip
    return settle(
        Lambda(lambda net, x: net.fc(F.relu(net.c(F.relu(net.b(F.relu(net.a(x)))))).flatten(1)), **layers),
        images(64, 3, 8, 8),
    )


def test_layers_get_different_bits_and_the_error_is_met() -> None:
    made = make_program(three_layers(), images(64, 3, 8, 8), settings=FormatSettings(sign_bits=4, tolerance=0.02))
    assert made.report is not None
    agreement = made.report.agreement
    assert agreement.rms_error <= 0.02 * agreement.spread
    bits = [op.tested for op in relus(made)]
    assert len(set(bits)) > 1 and min(bits) >= 4
    # as many everywhere as the layer with the fewest has are not enough
    steps = tuple(
        replace(step, op=replace(step.op, tested=min(bits)))
        if isinstance(step.op, Circuit) and step.op.tested
        else step
        for step in made.public.steps
    )
    fewer = replace(made, public=replace(made.public, steps=steps))
    assert error(fewer, images(64, 3, 8, 8)) > 0.02 * agreement.spread


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_caller_may_have_switched_gradients_off(mode: type) -> None:
    network = three_layers()
    with mode():
        made = make_program(network, images(32, 3, 8, 8), settings=FormatSettings(sign_bits=4))
    assert max(op.tested for op in relus(made)) > 4


def error(program: Program, batch: torch.Tensor) -> float:
    """Return the root mean square error of the logits against the same program with exact signs."""
    steps = tuple(
        replace(step, op=replace(step.op, tested=0)) if isinstance(step.op, Circuit) else step
        for step in program.public.steps
    )
    exact = Twin(replace(program, public=replace(program.public, steps=steps))).run(batch.numpy()).logits
    return float(np.sqrt(np.mean(np.square(Twin(program).run(batch.numpy()).logits - exact))))


def lowered(network: nn.Module, batch: torch.Tensor, chosen: FormatSettings) -> tuple[Graph, build._Calibrated]:
    """Return the graph that formats are chosen for."""
    graph, logits = build._converted(network, batch.double(), None)
    build._rewrite(graph, batch.double(), chosen)
    return graph, build._tuned(graph, batch.double(), logits, chosen, scale=True)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("bits", [3, 5, 7, 9])
def test_the_estimate_is_what_programs_do(layer: int, bits: int) -> None:
    """One layer unsure, the others exact: the program runs in plain integers, and is off by what was estimated."""
    batch = images(64, 3, 8, 8)
    graph, seen = lowered(three_layers(), batch, FINE)
    made = plan(graph, seen.ranges, FINE)
    errors = sign_errors(graph, batch.double(), made.formats)
    nodes = [node for node in graph.order() if node in errors]
    assert len(nodes) == 3
    signs = dict.fromkeys(nodes, EXACT)
    decide(made.formats, signs)
    assert all(made.formats.tested[node] == 0 for node in nodes)
    made.formats.tested[nodes[layer]] = bits
    program, _ = build._quantise(graph, made.formats, seen)
    estimated = np.sqrt(errors[nodes[layer]][bits])
    assert error(program, batch) == pytest.approx(estimated, rel=0.35)


def test_kept_elements_alone_cause_errors_and_bytes() -> None:
    network, batch = three_layers(), images(64, 3, 8, 8)
    graph, seen = lowered(network, batch, FINE)
    whole = sign_errors(graph, batch.double(), formats_of(graph, seen))
    graph, logits = build._converted(network, batch.double(), {"net:relu": np.arange(8 * 64).reshape(8, 8, 8) % 2 == 0})
    build._rewrite(graph, batch.double(), FINE)
    seen = build._tuned(graph, batch.double(), logits, FINE, scale=True)
    half = sign_errors(graph, batch.double(), formats_of(graph, seen))
    (first, own), (kept, other) = next(iter(whole.items())), next(iter(half.items()))
    assert 0 < other[9] < 0.9 * own[9]
    assert lookup_bytes({first: 9}) == 2 * lookup_bytes({kept: 9})


def formats_of(graph: Graph, seen: build._Calibrated) -> Formats:
    made = plan(graph, seen.ranges, FINE)
    made.undo()
    return made.formats


def test_errors_of_layers_add_up_where_not_all_bits_decide() -> None:
    a, b = layer(16, "a"), layer(16, "b")
    errors: SignErrors = {a: np.arange(EXACT + 1, 0, -1.0), b: np.arange(EXACT + 1, 0, -1.0) / 4}
    wide = {a: 18, b: 18}
    assert total(errors, {a: 8, b: 9}, wide) == errors[a][8] + errors[b][9]
    assert total(errors, {a: 8, b: 9}, {a: 8, b: 18}) == errors[b][9]
    assert total(errors, {a: 0, b: 0}, wide) == errors[a][EXACT] + errors[b][EXACT]


def test_a_mean_of_many_wrong_signs_is_seen() -> None:
    """What is cut is always below what it was; where all of it is added up with one sign, chance takes nothing away."""
    torch.manual_seed(0)
    network = settle(
        Lambda(
            lambda net, x: net.fc(F.relu(net.a(x)).mean((2, 3))), a=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(8, 4)
        ),
        images(64, 3, 16, 16),
    )
    with torch.no_grad():
        network.fc.weight.abs_()
    batch = images(64, 3, 16, 16)
    graph, seen = lowered(network, batch, FINE)
    made = plan(graph, seen.ranges, FINE)
    errors = sign_errors(graph, batch.double(), made.formats)
    ((node, own),) = errors.items()
    made.formats.tested[node] = 6
    program, _ = build._quantise(graph, made.formats, seen)
    assert error(program, batch) == pytest.approx(np.sqrt(own[6]), rel=0.3)


def test_bytes_are_those_of_the_layout() -> None:
    made = make_program(three_layers(), images(32, 3, 8, 8), settings=FormatSettings(tolerance=1e9))
    for bits in (5, 8, 9, 11):
        steps = tuple(
            replace(step, op=replace(step.op, tested=bits)) if isinstance(step.op, Circuit) and step.op.tested else step
            for step in made.public.steps
        )
        public = replace(made.public, steps=steps)
        layout = make_layout(public, weight_bits=16)
        units = [unit for unit in layout.units if isinstance(unit, LookupUnit)]
        chosen = Formats()
        nodes = {}
        for unit in units:
            op = unit.step.circuit
            assert op is not None and unit.instances % 8 == 0
            node = layer(unit.instances, unit.step.name)
            chosen.width[node], chosen.ring[node] = op.width, public.tensors[unit.step.output].ring_bits
            nodes[node] = bits
        prepared = sum(unit.permuting_bytes + 4 * unit.instances * bits for unit in units)
        assert lookup_bytes(nodes) == prepared
        online = sum(unit.labels_bytes + unit.words_bytes for unit in units)
        flags = sum(2 * unit.instances // 8 for unit in units)
        assert online_bytes(nodes, chosen) == online - flags


def test_more_bits_mean_less_error_by_the_power_that_independence_gives() -> None:
    """Each bit halves the number of unsure elements, and both moments of what they do: 2^1.5 for the root."""
    network, batch = three_layers(), images(64, 3, 8, 8)
    graph, seen = lowered(network, batch, FINE)
    for own in sign_errors(graph, batch.double(), plan(graph, seen.ranges, FINE).formats).values():
        assert (np.diff(own) <= 0).all() and own[EXACT] == 0
        assert (own[5] / own[8]) ** (1 / 6) == pytest.approx(2**1.5, rel=0.2)


def layer(size: int, name: str) -> Node:
    return Node(Circuit("relu", 18, 0), [], (size,), name)


def formats(nodes: list[Node], tested: int = 3, width: int = 18) -> Formats:
    made = Formats()
    for node in nodes:
        made.tested[node], made.width[node], made.fraction[node] = tested, width, 10
    return made


@given(
    st.lists(st.tuples(st.sampled_from([16, 256, 4096]), st.floats(1e-6, 1.0)), min_size=1, max_size=3),
    st.floats(1e-6, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_the_shares_meet_the_target_at_nearly_the_least_cost(layers: list[tuple[int, float]], target: float) -> None:
    nodes = [layer(size, f"l{i}") for i, (size, _) in enumerate(layers)]
    errors: SignErrors = {
        node: np.array([own * 8.0 ** -max(0, bits - 3) for bits in range(EXACT)] + [0.0])
        for node, (_, own) in zip(nodes, layers, strict=True)
    }
    width = dict.fromkeys(nodes, 18)
    signs = share_bits(errors, formats(nodes), width, target)
    assert total(errors, signs, width) <= target
    best = min(
        lookup_bytes(dict(zip(nodes, bits, strict=True)))
        for bits in product(range(3, EXACT + 1), repeat=len(nodes))
        if total(errors, dict(zip(nodes, bits, strict=True)), width) <= target
    )
    assert lookup_bytes(signs) <= 1.7 * best


def test_inputs_of_few_bits_get_no_more_and_what_was_decided_stays() -> None:
    a, b = layer(16, "a"), layer(16, "b")
    errors: SignErrors = {node: np.array([1.0] * EXACT + [0.0]) / 2 ** np.arange(EXACT + 1) for node in (a, b)}
    made = formats([a, b], tested=5)
    assert share_bits(errors, made, {a: 7, b: 18}, 0.0) == {a: 7, b: EXACT}
    assert share_bits(errors, made, {a: 7, b: 18}, 10.0) == {a: 5, b: 5}
    made.tested[b] = 0  # all bits
    assert share_bits(errors, made, {a: 7, b: 18}, 10.0) == {a: 5, b: EXACT}
    decide(made, {a: 9, b: 9})
    assert (made.tested[a], made.tested[b]) == (9, 0)
    decide(made, {a: 4})
    assert made.tested[a] == 9
    made.width[a] = 6
    decide(made, {a: 9})
    assert made.tested[a] == 6
    decide(made, {a: EXACT})
    assert made.tested[a] == 0


def test_nothing_is_garbled_that_can_be_looked_up() -> None:
    """With random weights nothing is left of an image behind 27 layers but small differences."""
    torch.manual_seed(0)
    network = mobilenet_v1(input=(3, 32, 32), classes=10, alpha=0.125)
    batch = photographs(32)
    made = make_program(settle(network, photographs(48)), batch)
    assert made.report is not None and made.report.settings.activation_bits > 13
    assert all(op.tested for op in relus(made))
    assert len({op.tested for op in relus(made)}) > 2


def test_a_layer_whose_signs_need_more_than_a_table_is_garbled_alone() -> None:
    made = make_program(
        three_layers(), images(32, 3, 8, 8),
        settings=FormatSettings(weight_bits=19, activation_bits=24, input_bits=24, tolerance=2e-6),
    )  # fmt: skip
    bits = [op.tested for op in relus(made)]
    assert 0 in bits and max(bits) > 10, bits


def test_bits_that_became_needless_are_taken_back() -> None:
    """The first bit of a small layer is worth most for its bytes; then a large one needs one that is enough alone."""
    a, b = layer(100, "a"), layer(1_000, "b")
    errors: SignErrors = {a: np.full(EXACT + 1, 0.1), b: np.zeros(EXACT + 1)}
    errors[a][4:] = 0.0
    errors[b][:4] = 0.85
    assert share_bits(errors, formats([a, b]), {a: 18, b: 18}, 0.2) == {a: 3, b: 4}
    assert share_bits(errors, formats([a, b]), {a: 18, b: 18}, 0.05) == {a: 4, b: 4}


def test_where_no_error_was_seen_all_get_a_bit() -> None:
    """Images that show none, as blank ones: the program was measured to be wrong all the same."""
    a, b = layer(16, "a"), layer(16, "b")
    errors: SignErrors = {node: np.zeros(EXACT + 1) for node in (a, b)}
    assert share_bits(errors, formats([a, b], tested=5), {a: 5, b: 18}, 0.1) == {a: 5, b: 6}


def test_images_from_all_over_tell_what_a_layer_does() -> None:
    network, batch = three_layers(), images(128, 3, 8, 8)
    batch[:64] = 0
    chosen = FormatSettings(sign_bits=5, tolerance=3e-3)
    bits = [[op.tested for op in relus(make_program(network, own, settings=chosen))] for own in (batch, batch.flip(0))]
    assert max(map(max, bits)) < 10
    assert np.abs(np.subtract(*bits)).max() <= 1


def test_logits_that_are_all_the_same_are_refused() -> None:
    network = three_layers()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.fill_(0.1)
    with pytest.raises(NetworkError, match="differ from the network's by at most 0.01 of their spread.*by rounding"):
        make_program(network, images(32, 3, 8, 8))


def measured(rounding: float, signs: float, errors: SignErrors, made: Formats, *, trimmed: int = 0) -> finer.Measured:
    """Return a program that is `rounding` and `signs` off, where one is allowed, a tolerance of 0.01 at a spread of 1."""

    def agreement(off: float) -> Agreement:
        return Agreement(64, 1.0, 0.01 * off, 0.1, 1.0, 0.1)

    chosen = FormatSettings(sign_bits=3)
    own = Plan(made, trimmed, [])
    return finer.Measured(chosen, own, agreement(np.hypot(rounding, signs)), agreement(rounding), errors)


def test_numbers_get_more_bits_where_rounding_needs_them_or_tables_are_dear() -> None:
    batch = photographs(32, 16)
    torch.manual_seed(0)
    network = Lambda(
        lambda net, x: net.fc(F.relu(net.b(F.relu(net.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 16, 3, padding=1), b=nn.Conv2d(16, 16, 3, padding=1), fc=nn.Linear(16, 4),
    )  # fmt: skip
    chosen = FormatSettings(sign_bits=3)
    graph, seen = lowered(settle(network, batch), batch, chosen)
    made = plan(graph, seen.ranges, chosen)
    made.undo()
    nodes = [node for node in graph.order() if made.formats.tested.get(node)]

    def asked(rounding: float, signs: float) -> tuple[int, set[int]]:
        own = np.array([(0.01 * signs) ** 2 / 2 * 8.0 ** -max(0, bits - 3) for bits in range(EXACT)] + [0.0])
        errors: SignErrors = dict.fromkeys(nodes, own)
        last = measured(rounding, signs, errors, made.formats)
        order = graph.order()
        settings, bits = finer.finer(graph, seen.ranges, chosen, last, trim=True)
        assert graph.order() == order
        assert settings.sign_bits == 3 and settings.activation_bits - 12 == settings.weight_bits - 8
        return settings.weight_bits - 8, set(bits.values())

    assert asked(0.1, 2.0) == (0, {4})  # signs alone
    assert asked(2.0, 0.1) == (2, {3})  # rounding alone: halved once it would take all that is allowed
    more, bits = asked(0.75, 3000.0)
    assert more == 1 and min(bits) > 10  # a bit for all costs less than large tables
    assert asked(100.0, 0.1)[0] == 6  # as many as it may have; it is measured again
    used = replace(chosen, weight_bits=14, activation_bits=18)
    last = replace(measured(2.0, 0.1, {}, made.formats), settings=used)
    with pytest.raises(NetworkError, match="differ from the network's by at most 0.01 of their spread"):
        finer.finer(graph, seen.ranges, chosen, last, trim=True)
    trimmed = measured(1.5, 0.1, {}, made.formats, trimmed=1)
    with pytest.raises(NetworkError, match="0.015 by rounding"):  # layers must get their bits back first
        finer.finer(graph, seen.ranges, chosen, trimmed, trim=True)


@pytest.mark.parametrize(
    ("rounding", "room", "expected"),
    [
        (0.0, 6, [0, 1]), (0.1, 6, [0, 1]), (0.9, 6, [0, 1, 2]), (0.9, 0, [0]), (1.0, 6, [1, 2]), (2.0, 6, [2, 3]),
        (2.0, 1, [1]), (2.0, 0, []), (math.inf, 6, []),
    ],
)  # fmt: skip
def test_numbers_may_keep_their_bits_where_rounding_is_just_good_enough(
    rounding: float, room: int, expected: list[int]
) -> None:
    """Signs may do with little; and a network that may have no more bits must not be refused before that is tried."""
    last = measured(rounding, 0.0, {}, formats([]))
    first = replace(last.settings, weight_bits=last.settings.weight_bits + room - 6)
    assert finer._choices(last, first) == expected


def test_an_estimate_that_was_too_low_is_corrected() -> None:
    """Else nothing would change, and the same program would be measured again and again."""
    nodes = [layer(16, "a")]
    errors: SignErrors = {nodes[0]: np.array([1e-12] * EXACT + [0.0])}
    last = measured(0.1, 2.0, errors, formats(nodes))
    assert last.worse == pytest.approx(4e-4 / 1e-12)
    assert measured(0.1, 2.0, {}, formats([])).worse == 1.0
