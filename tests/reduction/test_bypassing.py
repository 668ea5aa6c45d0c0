"""Bypassing: what a narrow block lost goes on beside it, as the linear map that comes closest."""

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
    linear_map,
    make_base,
    narrow,
    replace_relus,
)

from ..census.zoo import CLASSES, INPUT, ZOO, Head
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


def bypasses(network: nn.Module) -> list[nn.Conv2d]:
    return [module for name, module in network.named_modules() if "bypass" in name and isinstance(module, nn.Conv2d)]


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


@pytest.mark.parametrize("name", BLOCKS)
def test_with_lines_for_relus_it_is_the_wide_block(name: str) -> None:
    """Away from the border nothing is lost, if every ReLU is the line that stands for it."""
    torch.manual_seed(1)
    wide = trace(statistics(BLOCKS[name]()))
    sites = [site.name for site in find_relus(wide)]
    thin = narrow(wide, dict.fromkeys(sites, 0.25), INPUT)
    whole = add_bypasses(thin, wide, sites, (3, 40, 40), kernel=11)
    (around,) = bypasses(whole)
    assert around.bias is not None and around.in_channels == 3 and around.out_channels == 6
    results = {}
    for which, network in (("wide", wide), ("thin", thin), ("whole", whole)):
        results[which] = written(lines(copy.deepcopy(network).double()), LARGE)[..., 4:-4, 4:-4]
    scale = float(results["wide"].abs().max())
    torch.testing.assert_close(results["whole"], results["wide"], rtol=0, atol=1e-5 * scale)
    assert float((results["thin"] - results["wide"]).abs().max()) > 0.01 * scale


def test_a_kernel_by_hand() -> None:
    """A channel that is lost between two convolutions with one tap each: the product of the taps, halved."""
    block = BLOCKS["no batch norm"]()
    first, second = block.path[0], block.path[2]
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0, 0, 1, 1] = 5.0  # the strongest channel, which stays
        second.weight[0, 0, 1, 1] = 5.0
        first.weight[3, 2, 0, 1] = 3.0  # reads one row above
        second.weight[4, 3, 1, 2] = 2.0  # reads one column to the right
        first.bias[3] = 7.0
    wide = trace(block.eval())
    (site,) = [site.name for site in find_relus(wide)]
    thin = narrow(wide, {site: 0.125}, INPUT)
    (around,) = bypasses(add_bypasses(thin, wide, [site], INPUT, kernel=5))
    assert (around.kernel_size, around.padding, around.stride) == ((5, 5), (2, 2), (1, 1))
    expected = torch.zeros(6, 3, 5, 5)
    expected[4, 2, 1, 3] = 0.5 * 3.0 * 2.0
    torch.testing.assert_close(around.weight.detach(), expected)
    torch.testing.assert_close(around.bias.detach(), torch.tensor([0.0, 0, 0, 0, 0.5 * 7.0 * 2.0, 0]))  # type: ignore[union-attr]
    (cut,) = bypasses(add_bypasses(thin, wide, [site], INPUT))
    assert (cut.kernel_size, cut.padding) == ((3, 3), (1, 1))
    torch.testing.assert_close(cut.weight, around.weight[:, :, 1:4, 1:4])
    torch.testing.assert_close(cut.bias, around.bias)


def test_where_no_channel_was_lost_it_begins_with_nothing() -> None:
    wide = trace(statistics(BLOCKS["plain"]()))
    (site,) = [site.name for site in find_relus(wide)]
    whole = add_bypasses(wide, wide, [site], INPUT)
    (around,) = bypasses(whole)
    assert not around.weight.any() and around.bias is not None and not around.bias.any()
    images = torch.randn(2, *INPUT)
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
    (site,) = [site.name for site in find_relus(wide)]
    thin = narrow(wide, {site: 0.5}, INPUT)
    whole = add_bypasses(thin, wide, [site], (3, 40, 40), kernel=5)
    assert len(bypasses(whole)) == 1
    got, expected = (written(lines(n.double()), LARGE)[..., 4:-4, 4:-4] for n in (whole, wide))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_what_branches_or_is_hooked_has_none() -> None:
    class Branching(Block):
        def forward(self, x: Tensor) -> Tensor:
            inside = self.path[0](x)
            return self.head(self.path[3](self.path[2](self.path[1](inside))) + inside[:, :6])

    layers = (convolution(3, 8), nn.BatchNorm2d(8), nn.ReLU(), convolution(8, 6))
    hooked = BLOCKS["plain"]()
    hooked.path[3].register_forward_hook(lambda module, args, output: output * 2)
    for module in (Branching(*layers, around=nn.Identity()), hooked):
        network = trace(module.eval())
        (site,) = [site.name for site in find_relus(network)]
        assert not bypasses(add_bypasses(network, network, [site], INPUT))
    with pytest.raises(NetworkError, match="Every call site must be a ReLU"):
        add_bypasses(network, network, ["nowhere"], INPUT)


def test_one_that_needs_too_much_memory_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trace(BLOCKS["plain"]())
    (site,) = [site.name for site in find_relus(network)]
    monkeypatch.setattr(linear_map, "MOST_BYTES", 8 * 3 * 9 * 16 * 16)
    assert bypasses(add_bypasses(network, network, [site], INPUT))
    monkeypatch.setattr(linear_map, "MOST_BYTES", 8 * 3 * 9 * 16 * 16 - 1)
    assert not bypasses(add_bypasses(network, network, [site], INPUT))


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
        assert all(module.weight.requires_grad for module in bypasses(network))
    collapsed = build_candidate(base, Candidate(keep, True, beta=(0.5, 1.0), bypass=True, collapse=True))
    assert len(bypasses(collapsed)) == len(layers)
    assert (candidate.id.split("-")[-1], candidate.label.split(", ")[-1]) == ("y", "bypassed")
    assert Candidate.from_json(candidate.to_json()) == candidate


def test_where_nothing_goes_around_a_relu_there_is_none() -> None:
    base = make_base(NetworkSpec("vgg16", (3, 32, 32), 10, width=0.125))
    keep = tuple(stage.name for stage in base.census.stages)[-2:]
    assert not bypasses(build_candidate(base, Candidate(keep, beta=(0.5, 0.5), bypass=True)))


def test_masks_have_none() -> None:
    with pytest.raises(UsageError, match="bypass"):
        Candidate(keep=("S1",), bypass=True, masks=Masks("snl", "element", 10))
