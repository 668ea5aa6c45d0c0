"""Lines in place of removed ReLUs: where they go, where they begin, and that recipes hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn

from deepreduce.census import MaskedReLU, take_census, trace
from deepreduce.networks import NetworkSpec, build
from deepreduce.reduction import (
    Masks,
    SlopedReLU,
    build_candidate,
    census_of,
    choose,
    is_slope,
    make_base,
    masked_candidate,
    remove_relus,
    with_slopes,
)
from deepreduce.reduction.recipe import Recipe, load_network, save_network
from deepreduce.reduction.surgery.lines import absorb_line, first_lines, line_sites

from ...census.zoo import randomise

SPEC = NetworkSpec("resnet18", (3, 16, 16), 5, width=0.1)
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def test_example_lines_of_resnet18_stand_between_batch_norm_and_convolution() -> None:
    sites = line_sites(trace(build(SPEC)))
    assert sites == {f"{block}.relu1": f"{block}.bn1" for block in BLOCKS}  # behind an addition there is none


class Chain(nn.Module):
    """Convolution, batch norm, activation, convolution."""

    def __init__(self, *, groups: int = 1, affine: bool = True, act: nn.Module | None = None, twice: bool = False):
        super().__init__()
        self.twice = twice
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, affine=affine)
        self.act = act or nn.ReLU()
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.a(x)))
        if self.twice:
            x = self.norm(self.b(x) + x)
        return self.b(x)


@pytest.mark.parametrize(
    ("network", "free"),
    [
        (Chain(), True),
        (Chain(groups=4), False),
        (Chain(affine=False), False),
        (Chain(act=nn.ReLU6()), False),
        (Chain(twice=True), False),
    ],
)
def test_no_line_where_it_would_not_be_free(network: Chain, free: bool) -> None:
    assert line_sites(trace(network)) == ({"act": "norm"} if free else {})


def test_no_line_behind_batch_norms_that_share_their_weights() -> None:
    """To absorb two lines would change both twice."""
    network = nn.Sequential(Chain(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    assert set(line_sites(trace(network))) == {"0.act", "2"}
    network[1].weight, network[1].bias = network[0].norm.weight, network[0].norm.bias
    assert line_sites(trace(network)) == {}


def test_lines_begin_as_the_least_squares_fit() -> None:
    """Checked against a fit to a million samples of what the batch norm gives."""
    network = Chain()
    with torch.no_grad():
        network.norm.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.3]))
        network.norm.bias.copy_(torch.tensor([0.0, 0.4, -1.0, 0.9]))
    ((site, line),) = first_lines(trace(network), ["act"]).items()
    assert site == "act" and line.shape == (2, 4) and line.dtype == torch.float32
    random = np.random.default_rng(0)
    for channel, (scale, shift) in enumerate([(1.0, 0.0), (-0.5, 0.4), (2.0, -1.0), (0.3, 0.9)]):
        x = shift + scale * random.standard_normal(1_000_000)
        assert np.allclose(np.polyfit(x, np.maximum(x, 0), 1), line[:, channel].numpy(), atol=5e-3)
    assert first_lines(trace(network), []) == {}


def test_a_masked_layer_with_lines() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(5, 4, 3, 3), torch.rand(4, 3, 3) < 0.5
    line = torch.randn(2, 4)
    layer = MaskedReLU("relu", mask, "act", line)
    on_it = line[0].reshape(4, 1, 1) * x + line[1].reshape(4, 1, 1)
    assert torch.allclose(layer(x), torch.where(mask, x.clamp_min(0), on_it), atol=1e-6)
    assert list(layer.state_dict()) == ["line"] and "lines" in repr(layer)
    layer(x).sum().backward()
    removed = (~mask).float()
    assert torch.allclose(
        layer.line.grad, torch.stack([(x * removed).sum((0, 2, 3)), 5 * removed.sum((1, 2))]), atol=1e-5
    )


def test_a_slope_blends_the_relu_with_its_line() -> None:
    line = torch.tensor([[0.5, 0.0], [0.1, 1.0]])
    slope = SlopedReLU("relu", (2, 1, 1), "element", "act", line)
    with torch.no_grad():
        slope.alpha.copy_(torch.tensor([0.25, 0.0]).reshape(1, 2, 1, 1))
    x = torch.tensor([-2.0, 3.0]).reshape(1, 2, 1, 1)
    assert torch.allclose(slope(x).flatten(), torch.tensor([0.75 * (-1.0 + 0.1), 1.0]))
    assert all(is_slope(f"deepreduce_search_0.{name}") for name in slope.state_dict())


def test_slopes_have_lines_where_they_are_free_and_asked_for() -> None:
    base = make_base(SPEC)
    for asked in (False, True):
        _, slopes = with_slopes(base.network, base.census, "element", draws_lines=asked)
        drawn = {site for site, slope in slopes.items() if slope.line is not None}
        assert drawn == (set(line_sites(base.network)) if asked else set())


def test_a_batch_norm_absorbs_the_line_behind_it() -> None:
    network = trace(randomise(Chain())).eval()
    line = torch.randn(2, 4)
    x = torch.randn(2, 3, 6, 6)
    gone = remove_relus(network, ["act"])
    lines = remove_relus(network, [], masks={"act": np.zeros((4, 6, 6), dtype=np.bool_)}, lines={"act": line})
    absorb_line(gone, "norm", line)
    assert torch.allclose(gone(x), lines(x), atol=1e-5)


def example() -> tuple[fx.GraphModule, Recipe]:
    base = make_base(SPEC)
    random = np.random.default_rng(0)
    masks = choose({layer.name: random.random(layer.shape) for layer in base.census.layers}, 500)
    candidate = masked_candidate(
        base.census, masks, method="deepreduce-masks", granularity="element", budget=500, lines=True
    )
    census = census_of(base, candidate)
    randomise(base.network)
    network = build_candidate(base, candidate).eval()
    assert census.params == sum(parameter.numel() for parameter in network.parameters())
    assert census.params == take_census(network, SPEC.input).params
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, MaskedReLU) and module.line is not None:
                module.line.add_(torch.rand_like(module.line))  # elsewhere than where it begins
    recipe = Recipe(SPEC, candidate, census.relus, census.macs, census.params, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    return network, recipe


def test_example_lines_round_trip_through_a_recipe_with_identical_logits(tmp_path: Path) -> None:
    network, recipe = example()
    layers = [module for module in network.modules() if isinstance(module, MaskedReLU)]
    assert {layer.site for layer in layers if layer.line is not None} == {f"{block}.relu1" for block in BLOCKS}
    save_network(tmp_path, network, recipe)
    loaded, found = load_network(tmp_path)
    images = torch.rand(3, 3, 16, 16)
    assert torch.equal(loaded(images), network(images)) and found.candidate == recipe.candidate
    assert recipe.candidate is not None and recipe.candidate.masks is not None
    masks = recipe.candidate.masks
    without = replace(masks, lines=False)
    assert masks.digest != without.digest and "lines" not in without.to_json()
    assert Masks.from_json(masks.to_json()) == masks and Masks.from_json(without.to_json()) == without
    with pytest.raises(ValueError, match="another hash"):
        Masks.from_json({**masks.to_json(), "lines": False})
    with pytest.raises(ValueError, match="lines"):
        Masks.from_json({**masks.to_json(), "lines": 1})
