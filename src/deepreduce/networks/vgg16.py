"""VGG16 with batch norm (Simonyan and Zisserman, 2015, configuration D) for small images."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._layers import convolution, initialise, scaled, stem_stride

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_HIDDEN = 4096


class VGG16(nn.Module):
    """Five stages of 3x3 convolutions, each closed by max pooling, and a classifier with two hidden layers."""

    def __init__(self, input: tuple[int, int, int], classes: int, width: float, rho: float) -> None:
        super().__init__()
        inputs, height, side = input
        stride = stem_stride(rho)
        layers: list[nn.Module] = []
        for outputs, count in _STAGES:
            for _ in range(count):
                layers += [
                    convolution(inputs, scaled(outputs, width), 3, stride=1 if layers else stride),
                    nn.BatchNorm2d(scaled(outputs, width)),
                    nn.ReLU(),
                ]
                inputs = scaled(outputs, width)
            # Rounding up leaves a 1x1 map as it is, so that rho = 0.5 works at 32x32; even sizes are halved as usual.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        pooled = -(-height // (32 * stride)) * -(-side // (32 * stride))
        hidden = scaled(_HIDDEN, width)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * pooled, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )
        initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return one logit per class."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


def vgg16(*, input: tuple[int, int, int], classes: int, alpha: float = 1.0, rho: float = 1.0) -> VGG16:
    """Build VGG16: 15 ReLU layers, 284,672 ReLUs at 3x32x32, of which 8,192 between linear layers."""
    return VGG16(input, classes, alpha, rho)
