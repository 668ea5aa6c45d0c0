"""Small networks and images that the tests of the private rooms share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from deepreduce.private.program import FormatSettings, Program, make_program
from deepreduce.private.twin import Twin

FINE = FormatSettings(weight_bits=14, activation_bits=20, tolerance=0.01)


class Lambda(nn.Module):
    """A network made of layers and a function of an image and them."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def images(n: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def photographs(n: int, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth random images: like photographs, neighbouring pixels are alike."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(n, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(low, size=size, mode="bilinear", align_corners=False)
    return 1.2 * smooth + 0.2 * torch.randn(n, 3, size, size, generator=generator)


def settle(network: nn.Module, batch: Tensor) -> nn.Module:
    """Give the batch norms the statistics of a batch, and weights that are not one."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        network.train()(batch)
    return network.eval()


def reference(network: nn.Module, batch: Tensor) -> np.ndarray:
    import copy

    with torch.no_grad():
        return copy.deepcopy(network).double().eval()(batch.double()).numpy()


def agree(network: nn.Module, batch: Tensor, settings: FormatSettings = FINE) -> Program:
    """Convert a network and hold its twin against it, on images that calibration did not see."""
    half = len(batch) // 2
    program = make_program(network, batch[:half], settings=settings)
    expected = reference(network, batch[half:])
    got = Twin(program).run(batch[half:].numpy())
    assert not got.outside.any()
    assert np.abs(got.logits - expected).max() <= 0.02 * max(np.abs(expected).max(), 1e-3)
    return program
