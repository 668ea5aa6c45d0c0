"""From a network and calibration images to a program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...census import trace
from ...errors import DataError, NetworkError, RecipeError, problem
from .check import check_public
from .convert import convert, without_softmax
from .equalise import equalise
from .evaluate import rectified_range
from .finer import Measured, finer
from .fold import check_shapes, fold, simplify
from .formats import Formats, Range, Ranges, doubt
from .graph import Array, Graph, Input, Node
from .lowering import lower
from .merge import merge
from .operations import (
    ARGMAX,
    RELU6,
    Circuit,
    Concatenate,
    Convolution,
    Matrix,
    Operation,
    Sum,
    SumPool,
    Truncation,
)
from .plan import Plan, plan
from .program import (
    Agreement,
    FormatReport,
    Program,
    PublicProgram,
    Step,
    TensorFormat,
    Weights,
    argmax_format,
)
from .settings import FormatSettings
from .signs import SignErrors, decide, sign_errors
from .tune import tune

_BATCH = 8
_SAME = 1e-6


def make_program(
    network: nn.Module,
    images: Float[Tensor, "n channels height width"],
    *,
    settings: FormatSettings | None = None,
    masks: Mapping[str, Bool[np.ndarray, ...]] | None = None,
) -> Program:
    """Turn a network into a program for private inference.

    Args:
        network: reduced or not, in any mode; its evaluation mode is what runs. Not changed.
        images: normalised calibration images of the kind that will be asked about, at least two, better hundreds:
            ranges come from them. They stay out of the program, but its formats depend on them.
        settings: how formats are chosen.
        masks: for call sites of ReLUs, which elements keep theirs; see `deepreduce.private.program.convert`.

    Returns:
        The program with its report.

    Raises:
        NetworkError: if an operator does not convert (with its place and the remedy), if the network gives values that
            are not finite, if a ring would be too large, or if the program leaves its ranges or the stated accuracy on
            the calibration images.
        DataError: if the images are not of the network's shape.
    """
    chosen = settings or FormatSettings()
    calibration = _calibration(images)
    graph, logits = _converted(network, calibration, masks)
    _rewrite(graph, calibration, chosen)
    seen = _tuned(graph, calibration, logits, chosen, scale=chosen.equalise)
    used, trim = chosen, True
    signs: dict[Node, int] = {}
    errors: SignErrors | None = None
    while True:
        program, made = _planned(graph, calibration, seen, used, signs, trim=trim)
        assert program.report is not None
        agreement = program.report.agreement
        if agreement.rms_error <= used.tolerance * agreement.spread:
            _check_public(program.public)
            return program
        errors = sign_errors(graph, calibration, made.formats) if errors is None else errors
        exact = _measure(_with_exact_signs(program), calibration, seen.logits, used)
        last = Measured(used, made, agreement, exact, errors)
        try:
            used, signs = finer(graph, seen.ranges, chosen, last, trim=trim)
            continue
        except NetworkError:
            if not made.trimmed:
                raise
        trim = False
        if used.merge:  # what was not worth merging may be, now that all layers keep their bits
            seen = _tuned(graph, calibration, logits, used, trim=False)


def _calibration(images: Tensor) -> Tensor:
    """Check the calibration images, and return them as the graph computes."""
    if images.ndim != 4 or len(images) < 2 or not images.is_floating_point():
        raise DataError(
            problem(
                "calibration images are floating-point, of shape (n, channels, height, width), n at least 2",
                got=f"{images.dtype} {tuple(images.shape)}",
                remedy="pass normalised training images",
            )
        )
    return images.detach().cpu().double()


def _converted(
    network: nn.Module, images: Tensor, masks: Mapping[str, Bool[np.ndarray, ...]] | None
) -> tuple[Graph, Array]:
    """Return the network as a graph, and its logits for the first images."""
    traced = without_softmax(trace(network))
    graph = convert(traced, (int(images.shape[1]), int(images.shape[2]), int(images.shape[3])), masks=masks)
    if graph.output.size < 2:
        raise NetworkError(
            problem(
                "a private inference chooses among at least two classes",
                got=graph.output.size,
                remedy="give the network one output per class",
            )
        )
    _name_uniquely(graph)
    logits = _logits(graph, images[:_BATCH])
    if not masks:  # the network itself knows no masks
        with torch.no_grad():
            own = traced.cpu().double().eval()(images[:_BATCH]).numpy()
        _check_same(own, logits)
    return graph, logits


def _rewrite(graph: Graph, images: Tensor, settings: FormatSettings) -> None:
    """Fold, merge and lower a graph in place."""
    fold(graph, images[:_BATCH])
    if settings.merge:
        merge(graph)
    else:
        simplify(graph)
    check_shapes(graph)
    largest = {}
    if any(isinstance(node.op, Circuit) and node.op.kind == RELU6 for node in graph.order()):
        ranges = _calibrate(graph, images).ranges
        largest = {node: settings.margin * doubt(seen, settings) * seen.largest for node, seen in ranges.items()}
    lower(graph, largest)


def _tuned(
    graph: Graph, images: Tensor, logits: Array, settings: FormatSettings, *, trim: bool = True, scale: bool = False
) -> _Calibrated:
    """Merge for the sake of the rings, with `scale` equalise too, and return what calibration sees then.

    Args:
        graph: lowered; changed in place.
        images: for calibration.
        logits: of the first images, which the graph still gives.
        settings: see `FormatSettings`.
        trim: as for `plan`.
        scale: whether channels are equalised, which is done once.
    """
    seen = _calibrate(graph, images)
    if settings.merge and tune(graph, seen.ranges, settings, trim=trim):
        seen = _calibrate(graph, images)
    if scale:
        equalise(graph, seen.ranges, settings)
        seen = _calibrate(graph, images)
    _check_same(logits, seen.logits[:_BATCH])
    return seen


def _planned(
    graph: Graph, images: Tensor, seen: _Calibrated, settings: FormatSettings, signs: Mapping[Node, int], *, trim: bool
) -> tuple[Program, Plan]:
    """Return a program of the graph with its report, and its plan, undone.

    Args:
        graph: lowered; not changed.
        images: for calibration.
        seen: what they showed.
        settings: see `FormatSettings`.
        signs: of ReLU layers, by how many bits at least they decide their signs.
        trim: as for `plan`.
    """
    made = plan(graph, seen.ranges, settings, trim=trim)
    decide(made.formats, signs)
    program, rows = _quantise(graph, made.formats, seen)
    made.undo()
    report = FormatReport(settings, tuple(rows), _measure(program, images, seen.logits, settings))
    return replace(program, report=report), made


def _with_exact_signs(program: Program) -> Program:
    """Return a program in which all bits of a ReLU's input decide its sign."""
    steps = tuple(
        replace(step, op=replace(step.circuit, tested=0)) if step.circuit is not None else step
        for step in program.public.steps
    )
    return replace(program, public=replace(program.public, steps=steps))


def _check_public(public: PublicProgram) -> None:
    """Refuse a program that no client would load."""
    try:
        check_public(public)
    except RecipeError as error:
        raise NetworkError(
            problem(
                "a program is within the bounds that its clients hold it to",
                got=error,
                remedy="reduce the network's input or its layers, or its settings",
            )
        ) from error


def _name_uniquely(graph: Graph) -> None:
    seen: dict[str, int] = {}
    for node in graph.order():
        seen[node.name] = seen.get(node.name, 0) + 1
        if seen[node.name] > 1:
            node.name = f"{node.name}#{seen[node.name]}"


@dataclass(frozen=True)
class _Calibrated:
    """What the calibration images showed.

    Attributes:
        ranges: of every node; `plan` adds those of the nodes that it inserts.
        means: of every node, per channel.
        logits: of all images.
    """

    ranges: Ranges
    means: dict[Node, Array]
    logits: Array


def _calibrate(graph: Graph, images: Tensor) -> _Calibrated:
    """Run the graph on all images."""
    ranges: Ranges = {}
    means: dict[Node, Array] = {}
    logits = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        for node, value in graph.run(batch).items():
            share = len(batch) / len(images)
            largest, mean = float(value.abs().max()), float(value.abs().mean()) * share
            if not math.isfinite(largest):
                raise NetworkError(
                    problem(
                        "every value of the network is finite on the calibration images",
                        got=largest,
                        remedy="check the weights and the images for infinities and NaN",
                        where=node.place,
                    )
                )
            known = ranges.get(node, Range(0.0, 0.0))
            channels = value.abs().transpose(0, 1).flatten(1).amax(dim=1).numpy()
            highest = np.maximum(known.channels, channels)
            ranges[node] = Range(max(known.largest, largest), known.mean + mean, highest, len(images))
            per_channel = value.transpose(0, 1).flatten(1).mean(dim=1).numpy() * share
            means[node] = means.get(node, 0.0) + per_channel
            if node is graph.output:
                logits.append(value.numpy())
    return _Calibrated(ranges, means, np.concatenate(logits))


def _logits(graph: Graph, images: Tensor) -> Array:
    return np.asarray(graph.run(images)[graph.output].numpy())


def _check_same(before: Array, after: Array) -> None:
    """Hold logits after a rewriting against those before it."""
    if not np.isfinite(before).all():
        return  # calibration names the layer
    difference = float(np.abs(before - after).max())
    if not difference <= _SAME * max(float(np.abs(before).max()), 1e-30):
        raise NetworkError(
            problem(
                "the converted network gives the logits of the network itself",
                got=f"a difference of {difference:.3g}",
                remedy="report this network: one of its operators converts wrongly",
            )
        )


def _quantise(graph: Graph, formats: Formats, calibrated: _Calibrated) -> tuple[Program, list[dict[str, Any]]]:
    order = _by_round(graph)
    ids = {node: index for index, node in enumerate(order)}
    tensors = [TensorFormat(node.shape, formats.fraction[node], formats.ring[node]) for node in order]
    steps, weights, rows = [], {}, []
    for node in order[1:]:
        op = _operation(node, formats)
        own = _weights(node, formats, calibrated.means)
        has_bias = own.bias is not None
        if own.weight is not None or has_bias:
            weights[ids[node]] = own
        step = Step(op, tuple(ids[before] for before in node.inputs), ids[node], node.name, has_bias)
        steps.append(step)
        seen = calibrated.ranges[node.inputs[0] if step.circuit is not None else node].largest
        rows.append(_row(node, step, tensors, formats, seen, own))
    width, dropped = formats.logits
    tensors.append(argmax_format(tensors[ids[graph.output]].size))
    steps.append(Step(Circuit(ARGMAX, width, dropped), (ids[graph.output],), len(order), "argmax"))
    rows.append(
        {
            "name": "argmax", "source": "", "kind": ARGMAX, "elements": 1,
            "seen": calibrated.ranges[graph.output].largest,
            "allowed": math.ldexp(1.0, width - 1 + dropped - formats.fraction[graph.output]), "fraction_bits": 0,
            "ring_bits": tensors[-1].ring_bits, "ring_bits_in": formats.ring[graph.output], "width": width,
            "dropped": dropped,
        }
    )  # fmt: skip
    return Program(PublicProgram(tuple(tensors), tuple(steps)), weights), rows


def _by_round(graph: Graph) -> list[Node]:
    """Return the nodes in order, those of an earlier round of messages first."""
    level: dict[Node, int] = {}
    order = graph.order()
    for node in order:
        before = max((level[each] + isinstance(each.op, Circuit) for each in node.inputs), default=0)
        level[node] = before
    return sorted(order, key=lambda node: (level[node], isinstance(node.op, Circuit)))


def _operation(node: Node, formats: Formats) -> Operation:
    """Return a node's operation with the formats in it."""
    op = node.op
    assert not isinstance(op, Input)
    if isinstance(op, SumPool):
        return replace(op, factor=round(math.ldexp(node.factor, formats.weight_fraction[node])))
    if isinstance(op, (Sum, Concatenate)):
        return replace(op, shifts=tuple(formats.fraction[node] - formats.fraction[i] for i in node.inputs))
    if isinstance(op, Truncation):
        return Truncation(formats.dropped[node])
    if not isinstance(op, Circuit):
        assert isinstance(op, Operation)
        return op
    width, tested = formats.width[node], formats.tested[node]
    return replace(op, width=width, dropped=formats.dropped[node], below=0, tested=tested)


def _weights(node: Node, formats: Formats, means: dict[Node, Array]) -> Weights:
    """Round a node's weights and bias; the bias takes up what rounding the weights shifts the mean output by."""
    weight, bias = None, node.bias
    if isinstance(node.op, (Convolution, Matrix)):
        assert node.weight is not None
        scaled = np.ldexp(node.weight, formats.weight_fraction[node])
        rounded = np.rint(scaled)
        weight = rounded.astype(np.int64)
        lost = np.ldexp(scaled - rounded, -formats.weight_fraction[node])
        source = node.inputs[0]
        mean = means[source if source in means else source.inputs[0]]  # what was inserted refreshes its input
        correction = _mean_response(node, lost, mean)
        if correction.any():
            bias = correction if bias is None else bias + correction
    if bias is None:
        return Weights(weight, None)
    return Weights(weight, np.rint(np.ldexp(bias, formats.fraction[node])).astype(np.int64))


def _mean_response(node: Node, weight: Array, mean: Array) -> Array:
    """Return what weights answer to the mean input, away from the border: (outputs, 1, 1) or (outputs,)."""
    if isinstance(node.op, Matrix):
        return np.asarray(weight @ mean)
    assert isinstance(node.op, Convolution)
    outputs, per_group = weight.shape[:2]
    by_output = np.repeat(mean.reshape(node.op.groups, per_group), outputs // node.op.groups, axis=0)
    return np.asarray((weight.sum(axis=(2, 3)) * by_output).sum(axis=1).reshape(-1, 1, 1))


def _row(
    node: Node, step: Step, tensors: list[TensorFormat], formats: Formats, seen: float, own: Weights
) -> dict[str, Any]:
    out = tensors[step.output]
    row: dict[str, Any] = {
        "name": node.name,
        "source": node.source,
        "kind": step.circuit.kind if step.circuit is not None else type(step.op).__name__.lower(),
        "elements": out.size,
        "seen": seen,
        "allowed": None,
        "fraction_bits": out.fraction_bits,
        "ring_bits": out.ring_bits,
    }
    if step.circuit is not None:
        op = step.circuit
        before = tensors[step.inputs[0]]
        most = rectified_range(op)[1] + 1 if op.tested else 1 << (op.width - 1)
        row["allowed"] = math.ldexp(most, op.dropped - before.fraction_bits)
        row |= {"width": op.width, "tested": op.tested, "dropped": op.dropped, "ring_bits_in": before.ring_bits}
        row["kept"] = out.size if op.kept is None else len(op.kept)
    if isinstance(step.op, Truncation):
        row |= {"dropped": step.op.dropped, "failures": formats.failures[node]}
    if own.weight is not None:
        row |= {
            "weight_fraction_bits": formats.weight_fraction[node],
            "weight_max": int(np.abs(own.weight).max()),
            "macs": out.size * math.prod(own.weight.shape[1:]),
        }
    return row


def _measure(program: Program, images: Tensor, logits: Array, settings: FormatSettings) -> Agreement:
    """Run the program on the calibration images; refuse it if it leaves its ranges."""
    from ..twin import Twin, compare  # the twin is made of programs, so it comes after this room

    answers = Twin(program).run(images.numpy())
    if answers.outside.any():
        raise NetworkError(
            problem(
                "the program stays within its ranges on the calibration images",
                got=f"{int((answers.outside > 0).sum())} of {len(images)} images leave them",
                remedy="raise margin, or weight_bits",
            )
        )
    return compare(answers, logits, margin=settings.margin)
