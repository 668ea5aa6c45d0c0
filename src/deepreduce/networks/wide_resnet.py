"""WideResNet-22-8 (Zagoruyko and Komodakis, 2016): pre-activation blocks, depth 22, widened eight times.

The published ReLU counts of this network differ by its last ReLU layer (32,768 ReLUs at 32x32) between papers;
here it is present, as in the original definition.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._layers import convolution, initialise, scaled, stem_stride


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two convolutions; a shortcut that projects starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = convolution(inputs, outputs, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = convolution(outputs, outputs, 3)
        self.projects = stride != 1 or inputs != outputs
        self.shortcut: nn.Module = convolution(inputs, outputs, 1, stride=stride) if self.projects else nn.Identity()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return convolutions(x) + shortcut(x)."""
        y = self.relu1(self.bn1(x))
        beside = self.shortcut(y if self.projects else x)
        z: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(y)))) + beside
        return z


class WideResNet(nn.Module):
    """A stem, three stages of three blocks, a last batch norm and ReLU, pooling and a linear classifier."""

    def __init__(self, channels: int, classes: int, width: float, rho: float) -> None:
        super().__init__()
        inputs = scaled(16, width)
        self.conv1 = convolution(channels, inputs, 3, stride=stem_stride(rho))
        stages = []
        for number in range(3):
            outputs = scaled(128 * 2**number, width)
            stage = []
            for position in range(3):
                stage.append(PreActivationBlock(inputs, outputs, 2 if number > 0 and position == 0 else 1))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
        self.group1, self.group2, self.group3 = stages
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return one logit per class."""
        x = self.group3(self.group2(self.group1(self.conv1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(self.relu(self.bn(x))), 1))
        return logits


def wide_resnet_22_8(*, input: tuple[int, int, int], classes: int, alpha: float = 1.0, rho: float = 1.0) -> WideResNet:
    """Build WideResNet-22-8: 19 ReLU layers, 1,392,640 ReLUs at 3x32x32."""
    return WideResNet(input[0], classes, alpha, rho)
