"""The verb that says what a private inference will cost: it finds the network, and its program for our engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import fx, nn

from ._arguments import check_type, is_whole, listed, shown
from ._pricing import CALIBRATION_IMAGES, SETTLE_IMAGES, layout_of, random_images, settle
from .census import Census
from .errors import RecipeError, UsageError, near_misses, problem
from .networks import REFERENCE, NetworkSpec, is_reference
from .private.estimate import LINKS, PROTOCOLS, Cost, Counts, Link, cheetah_cost, delphi_cost, link_of, our_cost
from .reduction import Candidate, build_candidate, census_of, for_each, make_base
from .reduction.base import make_reference_base
from .reduction.recipe import RECIPE, load_network
from .training import Front

if TYPE_CHECKING:
    from .private.deployment import ClientModel
    from .private.program import PublicProgram
    from .private.protocol import Layout

_RANDOM_IMAGES = "the ranges come from random images: deepreduce export takes real ones"

_LINEAR_MODULES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_LINEAR_FUNCTIONS = (F.conv2d, F.linear, torch.conv2d, torch.matmul)


def estimate(
    network: str | Path | nn.Module,
    *,
    input: tuple[int, int, int] | None = None,
    classes: int | None = None,
    keep: Sequence[str] | None = None,
    thin: bool = False,
    alpha: float = 1.0,
    rho: float = 1.0,
    beta: float | Sequence[float] = (),
    trim: int | Sequence[int] = (),
    bypass: bool = False,
    collapse: bool = False,
    average_pooling: bool = False,
    width: float = 1.0,
    exchange_activations: bool = False,
    relus: int | None = None,
    full: nn.Module | None = None,
    protocols: Sequence[str] = PROTOCOLS,
    links: Sequence[str | Link] = tuple(LINKS),
    cores: int = 2,
    together: int = 1,
) -> dict[str, Any]:
    """Estimate what one private inference costs, for one image that is classified.

    For our engine gates, bytes and round trips are those of the real run of the same program. Formats and with them
    bytes depend on the weights: without weights, random ones stand in, and `notes` says so.

    Args:
        network: what `export` wrote for clients or servers (a file), a saved network (recipe.json, or its folder), a
            run folder, the name of a network, or a module.
        input: channels, height and width of one image; for a name or a module alone.
        classes: number of classes, likewise; default 100.
        keep, thin, alpha, rho, beta, trim, bypass, collapse, average_pooling, width, exchange_activations: a reduction,
            likewise; as in `profile`.
        relus: largest number of ReLUs; for a run folder alone.
        full: the full network, where a recipe or a run is not of a reference network.
        protocols: of `ours`, `delphi`, `cheetah`. Without `ours` the extra `private` is not needed.
        links: `lan`, `wan`, or links of your own; times over each.
        cores: that each party uses with our engine.
        together: bundles that our engine prepares together; `offline` is what each has of it.

    Returns:
        `network`, `relus`, `relu_layers`, `macs`, `linear_layers`, `links`, `cores`, `together`, `protocols` (by name,
        see `deepreduce.private.estimate.Cost`) and `notes`.

    Raises:
        UsageError: a name is unknown, or an argument does not go with this kind of network.
        NetworkError: the network does not convert, or a layer is too large for our engine.
        RecipeError, RunError: what was saved is damaged.
        MissingExtraError: our engine needs the extra `private`.
    """
    check_type("network", network, str, Path, nn.Module, where="RECIPE_OR_NETWORK")
    check_type("relus", relus, Real, NoneType, where="--relus")
    check_type("full", full, nn.Module, NoneType)
    asked, chosen = _protocols(protocols), _links(links)
    for what, number, option in (
        ("each party uses a whole number of cores, at least one", cores, "--cores"),
        ("a whole number of bundles is prepared together, at least one", together, "--together"),
    ):
        if not is_whole(number) or number < 1:
            raise UsageError(problem(what, got=shown(number), remedy="give 1 or more", where=option))
    reduction = _Reduction(
        input, classes, keep, thin, alpha, rho, beta, trim, bypass, collapse, average_pooling, width,
        exchange_activations,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = _subject(network, reduction, relus, full, program="ours" in asked)
    costs: list[Cost] = []
    for name in dict.fromkeys(asked):
        if name == "ours":
            assert subject.layout is not None
            costs.append(our_cost(subject.layout, chosen, cores=cores, together=together))
        else:
            costs.append((delphi_cost if name == "delphi" else cheetah_cost)(subject.counts, chosen))
    return {
        "network": subject.name,
        **asdict(subject.counts),
        "links": {
            link.name: {"bits_per_second": link.bits_per_second, "round_trip_seconds": link.round_trip_seconds}
            for link in chosen
        },
        "cores": cores,
        "together": together,
        "protocols": {cost.protocol: cost.to_json() for cost in costs},
        "notes": list(subject.notes),
    }


def _protocols(names: Sequence[str]) -> tuple[str, ...]:
    """Return the protocols that are asked for."""
    asked = listed("protocols", names, example="['ours', 'delphi']", where="--protocol")
    for name in asked:
        if name not in PROTOCOLS:
            raise UsageError(
                problem(
                    f"a protocol is one of {', '.join(PROTOCOLS)}",
                    got=shown(name) + near_misses(str(name), list(PROTOCOLS)),
                    remedy="choose one, or leave it out for all of them",
                    where="--protocol",
                )
            )
    return asked


def _links(links: Sequence[str | Link]) -> list[Link]:
    """Return the links that are asked for."""
    asked = listed("links", links, example="['lan']", where="--link")
    for link in asked:
        check_type("a link", link, str, Link, where="--link")
    return [link_of(link) if isinstance(link, str) else link for link in asked]


@dataclass(frozen=True)
class _Subject:
    """What is estimated."""

    name: str
    counts: Counts
    layout: Layout | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Reduction:
    """What goes with a network that is named, and with nothing that is saved."""

    input: tuple[int, int, int] | None = None
    classes: int | None = None
    keep: Sequence[str] | None = None
    thin: bool = False
    alpha: float = 1.0
    rho: float = 1.0
    beta: float | Sequence[float] = ()
    trim: int | Sequence[int] = ()
    bypass: bool = False
    collapse: bool = False
    average_pooling: bool = False
    width: float = 1.0
    exchange_activations: bool = False

    def refuse(self, what: object) -> None:
        """Refuse whatever was given: a saved network is what it is."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        given = [f"--{name.replace('_', '-')}" for name in names]
        if given:
            raise UsageError(
                problem(
                    "a saved network has its size and its reduction already",
                    got=", ".join(given),
                    remedy="leave it out, or name a network instead of a file",
                    where=what,
                )
            )

    def candidate(self, census: Census) -> Candidate | None:
        """Return the reduction, None for none."""
        stages = tuple(stage.name for stage in census.stages)
        if self.keep is not None:
            stages = listed("keep", self.keep, example="['S2', 'S3']", where="--keep")
        beta, trim = for_each("beta", self.beta, stages), for_each("trim", self.trim, stages)
        candidate = Candidate(
            stages,
            self.thin,
            self.alpha,
            self.rho,
            beta=beta,
            trim=trim,
            bypass=self.bypass,
            collapse=self.collapse,
            average_pooling=self.average_pooling,
        )
        whole = self.keep is None and not self.thin and candidate.is_unscaled and not self.average_pooling
        return None if whole else candidate


def _subject(
    network: str | Path | nn.Module, reduction: _Reduction, relus: int | None, full: nn.Module | None, *, program: bool
) -> _Subject:
    """Find out what kind of thing is meant."""
    if not isinstance(network, nn.Module) and not (isinstance(network, str) and is_reference(network)):
        path = Path(network)
        if path.exists():
            reduction.refuse(path)
            return _saved(path, relus, full, program)
        if isinstance(network, Path) or ":" not in network or path.suffix == ".safetensors":
            raise UsageError(
                problem(
                    "the file or folder must exist, if this is not the name of a network",
                    got=f"{str(network)!r}{near_misses(str(network), list(REFERENCE))}",
                    remedy=f"check the path, or name {', '.join(REFERENCE)}, package.module:function, or timm:NAME",
                    where="RECIPE_OR_NETWORK",
                )
            )
    if relus is not None or full is not None:
        raise UsageError(
            problem(
                "a budget and a full network go with what was saved",
                got="a network by itself",
                remedy="name a run folder, or reduce with --keep, --thin, --alpha, --rho, --beta and --trim",
                where="--relus" if relus is not None else "full",
            )
        )
    return _named(network, reduction, program)


def _named(network: str | Path | nn.Module, reduction: _Reduction, program: bool) -> _Subject:
    """A network without trained weights, or a module with its own."""
    if reduction.input is None:
        raise UsageError(
            problem(
                "a network by itself says nothing of its images",
                got="no size",
                remedy="give it, such as --input 3x32x32",
                where="--input",
            )
        )
    own = network if isinstance(network, nn.Module) else None
    name = type(network).__name__ if own is not None else str(network)
    classes = 100 if reduction.classes is None else reduction.classes
    base = make_base(NetworkSpec(name, reduction.input, classes, reduction.width, reduction.exchange_activations), own)
    candidate = reduction.candidate(base.census)
    census = base.census if candidate is None else census_of(base, candidate)
    label = base.spec.name if candidate is None else f"{base.spec.name}, {candidate.label}"
    counts = _counts(census, base.network)
    if not program:
        return _Subject(label, counts, None)
    built = copy.deepcopy(base.network) if candidate is None else build_candidate(base, candidate)
    if own is None:
        settle(built, random_images(SETTLE_IMAGES, reduction.input))
    layout, notes = layout_of(built, random_images(CALIBRATION_IMAGES, reduction.input), any_error=True)
    notes = (_RANDOM_IMAGES, *notes)
    if own is None:
        notes = ("the weights are random: trained ones may change formats, and bytes by some percent", *notes)
    return _Subject(label, counts, layout, notes)


def _saved(path: Path, relus: int | None, full: nn.Module | None, program: bool) -> _Subject:
    """What `export`, `reduce` or `save` wrote."""
    if path.is_file() and path.name == RECIPE:
        path = path.parent
    run = path.is_dir() and not (path / RECIPE).exists() and (path / "front.json").exists()
    if relus is not None and not run:
        raise UsageError(
            problem("a budget chooses among the networks of a run", got=path, remedy="leave it out", where="--relus")
        )
    if path.is_file():
        return _exported(path, program)
    folder, label = path, ""
    if run:
        front = Front.read(path)
        if relus is None:
            raise UsageError(
                problem(
                    "a run has several networks",
                    got="no budget",
                    remedy="choose one with --relus",
                    where="--relus",
                )
            )
        entry = front.best(relus=relus)
        folder, label = front.place(entry), str(entry["label"])
    elif not (path / RECIPE).exists():
        raise UsageError(
            problem(
                "a folder holds a saved network (recipe.json) or a finished run (front.json)",
                got="neither",
                remedy="name such a folder, a file from deepreduce export, or a network",
                where=path,
            )
        )
    graph, recipe = load_network(folder, full)
    base = make_reference_base(recipe.spec) if full is None else make_base(recipe.spec, full)
    census = base.census if recipe.candidate is None else census_of(base, recipe.candidate)
    label = label or (recipe.spec.name if recipe.candidate is None else recipe.candidate.label)
    name = label if label == recipe.spec.name else f"{recipe.spec.name}, {label}"
    counts = _counts(census, graph)
    if not program:
        return _Subject(name, counts, None)
    layout, notes = layout_of(graph, random_images(CALIBRATION_IMAGES, recipe.spec.input), any_error=True)
    return _Subject(name, counts, layout, (_RANDOM_IMAGES, *notes))


def _exported(path: Path, program: bool) -> _Subject:
    """A file from `export`: the program is there, and exact."""
    from .private.deployment import load_client, load_server
    from .private.program.operations import RELU

    try:
        model: ClientModel = load_client(path)
    except RecipeError as error:
        try:
            model = load_server(path).client
        except RecipeError:
            raise error from None
    public = model.public
    counts = Counts(
        relus=public.relus,
        relu_layers=sum(step.circuit is not None and step.circuit.kind == RELU for step in public.steps),
        macs=public.macs,
        linear_layers=sum(step.weighted for step in public.steps),
    )
    notes = ["MACs and linear layers are those of the program, in which neighbouring layers may be merged"]
    if _made_of_relus(public):
        notes.append(
            "ReLUs and their layers are those of the program, and count those that its maxima and ReLU6 are made of: "
            "what other protocols would cost is too high by these; deepreduce estimate of the network itself, or of "
            "its recipe, leaves them out"
        )
    return _Subject(model.about.network, counts, model.layout if program else None, tuple(notes))


def _made_of_relus(public: PublicProgram) -> bool:
    """Tell whether a program has maxima or ReLU6 made of ReLUs, see `deepreduce.private.program.lowering`.

    A maximum is relu(a - b) + b, a ReLU6 is relu(x) - relu(x - 6).
    """
    from .private.program.operations import RELU, RESCALE, Gather, Sum, Truncation

    made_by = {step.output: step for step in public.steps}

    def origin(tensor: int) -> int:
        """Return the tensor whose elements these are, refreshed or not."""
        step = made_by.get(tensor)
        same = step is not None and (
            isinstance(step.op, (Gather, Truncation)) or (step.circuit is not None and step.circuit.kind == RESCALE)
        )
        return origin(step.inputs[0]) if step is not None and same else tensor

    def rectified(tensor: int) -> int | None:
        """Return the tensor of which this one is the ReLU, None where it is none."""
        step = made_by.get(tensor)
        relu = step is not None and step.circuit is not None and step.circuit.kind == RELU
        return origin(step.inputs[0]) if step is not None and relu else None

    for step in public.steps:
        if not isinstance(step.op, Sum) or len(step.inputs) != 2:
            continue
        first, second = map(origin, step.inputs)
        inside, other = rectified(first), rectified(second)
        if step.op.signs == (1, 1) and inside in made_by:
            ahead = made_by[inside]
            if isinstance(ahead.op, Sum) and ahead.op.signs == (1, -1) and origin(ahead.inputs[1]) == second:
                return True
        if step.op.signs == (1, -1) and inside is not None and other in made_by:
            above = made_by[other]
            if isinstance(above.op, Sum) and list(map(origin, above.inputs)) == [inside]:
                return True
    return False


def _counts(census: Census, graph: fx.GraphModule) -> Counts:
    linear = 0
    for node in graph.graph.nodes:
        if node.op == "call_module":
            linear += isinstance(graph.get_submodule(node.target), _LINEAR_MODULES)
        elif node.op == "call_function":
            linear += node.target in _LINEAR_FUNCTIONS
    layers = sum(layer.relus > 0 for layer in census.layers)
    return Counts(relus=census.relus, relu_layers=layers, macs=census.macs, linear_layers=linear)
