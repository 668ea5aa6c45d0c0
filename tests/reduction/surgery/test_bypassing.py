"""Bypassing: what a narrow block lost goes on beside it, as the linear layers that come closest."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, fx, nn

from deepreduce.census import find_relus, take_census, trace
from deepreduce.errors import NetworkError, UsageError
from deepreduce.networks import NetworkSpec
from deepreduce.reduction import (
    Candidate,
    Masks,
    add_bypasses,
    build_candidate,
    census_of,
    linear_fit,
    make_base,
    narrow_channels,
    replace_relus,
)

from ...census.zoo import CLASSES, INPUT, ZOO, Head
from .test_collapsing import statistics

SPEC = NetworkSpec("Users", INPUT, CLASSES)
LARGE = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Line(nn.Module):
    """The linear function next to a ReLU behind a batch norm, in its place."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        self.fit = (torch.tensor(0.5), torch.tensor(0.0))
        if norm is not None:
            slope, intercept = linear_fit(norm.weight.detach().double(), norm.bias.detach().double())
            self.fit = slope.reshape(-1, 1, 1), intercept.reshape(-1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        slope, intercept = self.fit
        return slope * x + intercept


class Block(nn.Module):
    """A residual block; what it computes is seen before its head."""

    def __init__(self, *layers: nn.Module, around: nn.Module) -> None:
        super().__init__()
        self.path, self.around, self.head = nn.Sequential(*layers), around, Head(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.path(x) + self.around(x))


def convolution(inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": 1, **options})  # type: ignore[arg-type]


BLOCKS = {
    "plain": lambda: Block(
        convolution(3, 8), nn.BatchNorm2d(8), nn.ReLU(), convolution(8, 6), around=nn.Conv2d(3, 6, 1)
    ),
    "no batch norm": lambda: Block(convolution(3, 8), nn.ReLU(), convolution(8, 6), around=nn.Conv2d(3, 6, 1)),
    "stride": lambda: Block(
        convolution(3, 8, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(),
        convolution(8, 6, 5, padding=2),
        around=nn.Conv2d(3, 6, 1, stride=2),
    ),
    "second stride, dilated": lambda: Block(
        convolution(3, 8, (3, 1), padding=(1, 0)),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        convolution(8, 6, dilation=2, padding=2, stride=2),
        around=nn.Conv2d(3, 6, 1, stride=2),
    ),
    "batch norm behind": lambda: Block(
        convolution(3, 8), nn.ReLU(), nn.BatchNorm2d(8), convolution(8, 6), around=nn.Conv2d(3, 6, 1)
    ),
    "groups behind": lambda: Block(
        convolution(3, 8), nn.BatchNorm2d(8), nn.ReLU(), convolution(8, 6, groups=2), around=nn.Conv2d(3, 6, 1)
    ),
    "bottleneck": lambda: Block(
        nn.Conv2d(3, 8, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        convolution(8, 8, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        around=nn.Conv2d(3, 6, 1),
    ),
}


def bypasses(network: nn.Module) -> list[nn.Sequential]:
    return [
        module
        for name, module in network.named_children()
        if name.startswith("deepreduce_bypass_") and isinstance(module, nn.Sequential)
    ]


def lines(network: fx.GraphModule) -> fx.GraphModule:
    """Put its line in the place of every ReLU."""
    nodes = {node.name: node for node in network.graph.nodes}
    norms: dict[str, nn.Module | None] = {}
    for site in find_relus(network):
        before = network.get_submodule(str(nodes[site.node].all_input_nodes[0].target))
        norms[site.name] = before if isinstance(before, nn.BatchNorm2d) else None
    return replace_relus(network, list(norms), lambda site: Line(norms[site.name]))[0]


class Watching(fx.Interpreter):
    """Keeps what the head of a block reads."""

    seen: Tensor

    def call_method(self, target: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        if target == "mean":
            (self.seen,) = [value for value in args if isinstance(value, Tensor)]
        return super().call_method(target, args, kwargs)  # type: ignore[arg-type]


def written(network: fx.GraphModule, images: Tensor) -> Tensor:
    """Return what the head of a block reads."""
    watching = Watching(network.eval())
    with torch.no_grad():
        watching.run(images)
    return watching.seen


def narrowed(wide: fx.GraphModule, share: float) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a network with narrow layers in front of all its ReLUs, and the same with bypasses."""
    sites = [site.name for site in find_relus(wide)]
    thin, read = narrow_channels(wide, dict.fromkeys(sites, share), INPUT)
    return thin, add_bypasses(thin, wide, sites, INPUT, read=read)


@pytest.mark.parametrize("name", BLOCKS)
def test_with_lines_for_relus_it_is_the_wide_block(name: str) -> None:
    """Away from the border nothing is lost, if every ReLU is the line that stands for it."""
    torch.manual_seed(1)
    wide = trace(statistics(BLOCKS[name]()))
    thin, whole = narrowed(wide, 0.25)
    (around,) = bypasses(whole)
    assert around.eval()(torch.zeros(1, *INPUT)).shape[1] == 6
    results = {}
    for which, network in (("wide", wide), ("thin", thin), ("whole", whole)):
        results[which] = written(lines(copy.deepcopy(network).double()), LARGE)[..., 4:-4, 4:-4]
    scale = float(results["wide"].abs().max())
    torch.testing.assert_close(results["whole"], results["wide"], rtol=0, atol=1e-5 * scale)
    assert float((results["thin"] - results["wide"]).abs().max()) > 0.01 * scale


@pytest.mark.parametrize("name", BLOCKS)
def test_all_padding_is_in_front_so_that_it_is_one_convolution(name: str) -> None:
    """The value at the border is that of the same layers on a larger map of zeros around the image."""
    wide = trace(statistics(BLOCKS[name]()))
    (around,) = bypasses(narrowed(wide, 0.5)[1])
    convolutions = [layer for layer in around if isinstance(layer, nn.Conv2d)]
    assert all(layer.padding == (0, 0) for layer in convolutions[1:])
    images = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        far = F.pad(images, (8, 8, 8, 8))
        step = 12 // around(images).shape[-1]
        torch.testing.assert_close(around(far)[..., 8 // step : -8 // step, 8 // step : -8 // step], around(images))


def test_where_one_begins_at_another_it_reads_what_the_block_reads() -> None:
    torch.manual_seed(1)
    layers = (convolution(3, 8), nn.BatchNorm2d(8), nn.ReLU(), convolution(8, 6))
    further = (convolution(6, 8), nn.BatchNorm2d(8), nn.ReLU(), convolution(8, 6))
    wide = trace(statistics(Block(*layers, *further, around=nn.Conv2d(3, 6, 1))))
    whole = narrowed(wide, 0.25)[1]
    assert len(bypasses(whole)) == 2
    got, expected = (written(lines(network.double()), LARGE)[..., 6:-6, 6:-6] for network in (whole, wide))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_weights_by_hand() -> None:
    """Without a batch norm a ReLU is half of its input: the second convolution, halved where a channel was lost."""
    wide = trace(BLOCKS["no batch norm"]().eval())
    first, second = (wide.get_submodule(name) for name in ("path.0", "path.2"))
    with torch.no_grad():
        first.get_parameter("weight")[5] *= 100  # the strongest channel, which stays
    (around,) = bypasses(narrowed(wide, 0.125)[1])
    assert [type(layer) for layer in around] == [nn.Conv2d, nn.Conv2d]
    torch.testing.assert_close(around.get_parameter("0.weight"), first.get_parameter("weight"))
    torch.testing.assert_close(around.get_parameter("0.bias"), first.get_parameter("bias"))
    expected = 0.5 * second.get_parameter("weight").detach()
    expected[:, 5] = 0
    torch.testing.assert_close(around.get_parameter("1.weight").detach(), expected)
    assert dict(around[1].named_parameters()).keys() == {"weight"}


def test_where_no_channel_was_lost_it_begins_with_nothing() -> None:
    wide = trace(statistics(BLOCKS["plain"]()))
    (site,) = [site.name for site in find_relus(wide)]
    whole = add_bypasses(wide, wide, [site], INPUT)
    (around,) = bypasses(whole)
    images = torch.randn(2, *INPUT)
    assert not around(images).any() and around.get_parameter("0.weight").any()
    torch.testing.assert_close(whole.eval()(images), wide.eval()(images))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_users_networks(name: str) -> None:
    """Whatever is in the way: a network with bypasses of zeros computes what it computes without."""
    network = trace(statistics(ZOO[name]()))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    whole = add_bypasses(network, network, [site.name for site in find_relus(network)], INPUT).eval()
    images = torch.randn(2, *INPUT, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(whole(images), network.eval()(images), rtol=1e-4, atol=1e-5)
    assert [site.name for site in find_relus(whole)] == [site.name for site in find_relus(network)]
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


class Writing(nn.Module):
    """A block whose input is written to behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = convolution(3, 8), nn.BatchNorm2d(8), convolution(8, 3)
        self.head = Head(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = self.second(F.relu(self.norm(self.first(x))))
        x += 1
        return self.head(y + x)


def test_it_reads_what_the_block_reads() -> None:
    """Even where that is written to later; seen by giving the bypass the weights of a channel that was lost."""
    wide = trace(statistics(Writing()))
    whole = narrowed(wide, 0.5)[1]
    assert len(bypasses(whole)) == 1
    got, expected = (written(lines(n.double()), LARGE)[..., 4:-4, 4:-4] for n in (whole, wide))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_what_branches_or_is_hooked_has_none() -> None:
    class Branching(Block):
        def forward(self, x: Tensor) -> Tensor:
            inside = self.path[0](x)
            return self.head(self.path[3](self.path[2](self.path[1](inside))) + inside[:, :6])

    layers = (convolution(3, 8), nn.BatchNorm2d(8), nn.ReLU(), convolution(8, 6))
    computed, biased = BLOCKS["plain"](), BLOCKS["plain"]()
    nn.utils.parametrizations.weight_norm(computed.path[3])
    nn.utils.parametrize.register_parametrization(biased.path[3], "bias", nn.Identity())
    hooked = BLOCKS["plain"]()
    hooked.path[3].register_forward_hook(lambda module, args, output: output * 2)
    for module in (Branching(*layers, around=nn.Identity()), computed, biased, hooked):
        network = trace(module.eval())
        (site,) = [site.name for site in find_relus(network)]
        assert not bypasses(add_bypasses(network, network, [site], INPUT))
    with pytest.raises(NetworkError, match="Every call site must be a ReLU"):
        add_bypasses(network, network, ["nowhere"], INPUT)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "wide_resnet_22_8"])
def test_a_candidate_with_it(name: str) -> None:
    base = make_base(NetworkSpec(name, (3, 32, 32), 10, width=0.125))
    keep = tuple(stage.name for stage in base.census.stages)[-2:]
    candidate = Candidate(keep=keep, thin=True, beta=(0.5, 1.0), trim=(1, 1), bypass=True)
    counted, without = census_of(base, candidate), census_of(base, Candidate(keep, True, beta=(0.5, 1.0), trim=(1, 1)))
    assert counted.relus == without.relus and counted.macs > without.macs
    for network in (build_candidate(base, candidate), build_candidate(base, candidate, warm=False)):
        measured = take_census(network, (3, 32, 32))
        assert (measured.relus, measured.macs, measured.params) == (counted.relus, counted.macs, counted.params)
        layers = [layer for layer in base.census.layers if layer.name in {own.name for own in measured.layers}]
        assert len(bypasses(network)) == len(layers) > 0
        assert all(parameter.requires_grad for module in bypasses(network) for parameter in module.parameters())
    collapsed = build_candidate(base, Candidate(keep, True, beta=(0.5, 1.0), bypass=True, collapse=True))
    assert len(bypasses(collapsed)) == len(layers)
    assert (candidate.id.split("-")[-1], candidate.label.split(", ")[-1]) == ("y", "bypassed")
    assert Candidate.from_json(candidate.to_json()) == candidate


def test_where_nothing_goes_around_a_relu_there_is_none() -> None:
    base = make_base(NetworkSpec("vgg16", (3, 32, 32), 10, width=0.125))
    keep = tuple(stage.name for stage in base.census.stages)[-2:]
    assert not bypasses(build_candidate(base, Candidate(keep, beta=(0.5, 0.5), bypass=True)))


def test_a_users_fresh_network_begins_as_a_reference_network_does() -> None:
    """Its weights are drawn before it is bypassed: what the narrow block reads is silent in the copy."""
    module = BLOCKS["plain"]()
    base = make_base(SPEC, module)
    network = build_candidate(base, Candidate(("S1",), beta=(0.5,), bypass=True), warm=False)
    (around,) = bypasses(network)
    silent = around.get_parameter("2.weight").flatten(2).abs().sum((0, 2)) == 0
    assert int(silent.sum()) == 4
    assert not torch.equal(around.get_parameter("0.weight"), module.path[0].weight)


def test_which_channels_a_transposed_convolution_still_reads() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up, self.head = convolution(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2), Head(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.up(F.relu(self.first(x))))

    wide = trace(Up().eval())
    (site,) = [site.name for site in find_relus(wide)]
    thin, read = narrow_channels(wide, {site: 0.5}, INPUT)
    kept = wide.get_parameter("up.weight")[read["up"]]
    assert len(read["up"]) == 4 and torch.equal(thin.get_parameter("up.weight"), kept)


def test_masks_have_none() -> None:
    with pytest.raises(UsageError, match="bypass"):
        Candidate(keep=("S1",), bypass=True, masks=Masks("snl", "element", 10))
