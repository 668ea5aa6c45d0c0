"""Every published ReLU count comes out, to the last ReLU, through the call that users make."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest

import deepreduce

STAGES = {  # totals and S1, S2, ... of the full networks
    ("resnet18", 32): (557_056, 327_680, 131_072, 65_536, 32_768),
    ("resnet18", 64): (2_228_224, 1_310_720, 524_288, 262_144, 131_072),
    ("resnet34", 32): (966_656, 458_752, 262_144, 196_608, 49_152),
    ("mobilenet_v1", 32): (411_648, 131_072, 114_688, 57_344, 94_208, 14_336),
}

RELEASED = [  # ResNet18: image side, ReLUs, kept stages, thinned, alpha, rho
    (32, 229_376, "S2 S3 S4", False, 1, 1),
    (32, 196_608, "S2 S3", False, 1, 1),
    (32, 114_688, "S2 S3 S4", True, 1, 1),
    (32, 57_344, "S2 S3 S4", True, 0.5, 1),
    (32, 49_152, "S2 S3", True, 0.5, 1),
    (32, 28_672, "S2 S3 S4", True, 1, 0.5),
    (32, 14_336, "S2 S3 S4", True, 0.5, 0.5),
    (32, 12_288, "S2 S3", True, 0.5, 0.5),
    (64, 917_504, "S2 S3 S4", False, 1, 1),
    (64, 458_752, "S2 S3 S4", True, 1, 1),
    (64, 393_216, "S3 S4", False, 1, 1),
    (64, 229_376, "S2 S3 S4", True, 0.5, 1),
    (64, 196_608, "S3 S4", True, 1, 1),
    (64, 114_688, "S2 S3 S4", True, 1, 0.5),
    (64, 98_304, "S3 S4", True, 0.5, 1),
    (64, 57_344, "S2 S3 S4", True, 0.5, 0.5),
    (64, 49_152, "S3 S4", True, 1, 0.5),
    (64, 24_576, "S3 S4", True, 0.5, 0.5),
]


@functools.cache
def full(name: str, side: int) -> dict[str, Any]:
    return profile(name, side)


def profile(name: str, side: int, **options: Any) -> dict[str, Any]:
    """Profile, and go through JSON, as the command line does."""
    counted = json.loads(json.dumps(deepreduce.profile(name, input=(3, side, side), **options)))
    assert isinstance(counted, dict)
    return counted


def test_narrowing_leaves_every_other_layer_as_it_was() -> None:
    counted = profile("resnet18", 32, keep=["S3", "S4"], thin=True, beta=[0.25])
    assert counted["relus"] == 12_288 and counted["candidate"]["beta"] == [0.25, 0.25]
    saved = sum(
        9 * side * side * (channels // 2 * channels + 3 * channels * channels)
        for side, channels in ((8, 256), (4, 512))
    )  # of both convolutions of both blocks, three quarters of the channels between them
    assert counted["before"]["macs"] - counted["macs"] == 3 / 4 * saved


def test_an_example() -> None:
    counted = profile("resnet18", 32, keep=["S2", "S3"], thin=True, alpha=0.5, rho=0.5)
    assert counted["relus"] == 12_288
    assert counted["before"]["relus"] == 557_056
    assert [(stage["name"], stage["relus"]) for stage in counted["stages"]] == [
        ("S1", 0),
        ("S2", 8_192),
        ("S3", 4_096),
        ("S4", 0),
    ]


@pytest.mark.parametrize(("name", "side"), STAGES)
def test_stage_tables(name: str, side: int) -> None:
    counted = full(name, side)
    assert (counted["relus"], *(stage["relus"] for stage in counted["stages"])) == STAGES[name, side]
    assert [stage["name"] for stage in counted["stages"]] == [f"S{n}" for n in range(1, len(STAGES[name, side]))]
    for stage in counted["stages"]:
        assert stage["relus"] == sum(layer["relus"] for layer in stage["layers"])
        assert {tuple(layer["shape"][1:]) for layer in stage["layers"]} == {tuple(stage["resolution"])}


@pytest.mark.parametrize(("side", "relus", "keep", "thin", "alpha", "rho"), RELEASED)
def test_released_networks(side: int, relus: int, keep: str, thin: bool, alpha: float, rho: float) -> None:
    counted = profile("resnet18", side, keep=keep.split(), thin=thin, alpha=alpha, rho=rho)
    assert counted["relus"] == relus
    assert counted["before"]["relus"] == STAGES["resnet18", side][0]
    assert [stage["name"] for stage in counted["stages"] if stage["relus"]] == keep.split()


def test_macs() -> None:
    """555.5 M, and by alpha 0.5, rho 0.5 and both; the paper counts convolutions and the classifier."""
    found = [full("resnet18", 32)["macs"]] + [
        profile("resnet18", 32, alpha=alpha, rho=rho)["macs"] for alpha, rho in ((0.5, 1), (1, 0.5), (0.5, 0.5))
    ]
    assert [round(macs / 1e6, 1) for macs in found] == [555.5, 139.3, 138.9, 34.8]


def test_seventeen_relu_layers() -> None:
    counted = full("resnet18", 32)
    layers = [layer["name"] for stage in counted["stages"] for layer in stage["layers"]]
    assert len(layers) == 17
    assert [len(stage["layers"]) for stage in counted["stages"]] == [5, 4, 4, 4]
    assert layers[:5] == ["relu", "layer1.0.relu1", "layer1.0.relu2", "layer1.1.relu1", "layer1.1.relu2"]


def test_the_further_reference_networks() -> None:
    """Counted by hand: VGG16 as the sum over its table, WideResNet-22-8 with its last ReLU layer."""
    vgg = full("vgg16", 32)
    assert (
        vgg["relus"] == 2 * 64 * 32**2 + 2 * 128 * 16**2 + 3 * 256 * 8**2 + 3 * 512 * 4**2 + 3 * 512 * 2**2 + 2 * 4096
    )
    wide = full("wide_resnet_22_8", 32)
    first = 16 * 32**2 + 5 * 128 * 32**2 + 128 * 32**2
    assert wide["relus"] == first + 5 * 256 * 16**2 + 256 * 16**2 + 5 * 512 * 8**2 + 512 * 8**2 == 1_392_640


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "mobilenet_v1", "vgg16", "wide_resnet_22_8"])
def test_64x64_has_four_times_the_relus_of_32x32(name: str) -> None:
    small, large = full(name, 32), full(name, 64)
    vectors = sum(stage["relus"] for stage in small["stages"] if stage["resolution"] == [1, 1])
    assert large["relus"] - vectors == 4 * (small["relus"] - vectors)
