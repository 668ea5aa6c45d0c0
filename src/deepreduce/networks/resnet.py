"""ResNet18 and ResNet34 for small images (He et al., 2016), as the DeepReDuce paper uses them.

The stem is one 3x3 convolution without pooling. Its stride is 1/rho: that is how the released networks scale the
resolution of every feature map.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._layers import convolution, initialise, scaled, stem_stride


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; one ReLU between the convolutions, one after the addition."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                convolution(inputs, outputs, 1, stride=stride),
                nn.BatchNorm2d(outputs),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return relu(convolutions(x) + shortcut(x))."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        z: Tensor = self.relu2(y + self.shortcut(x))
        return z


class ResNet(nn.Module):
    """A stem, four residual stages, global average pooling and a linear classifier."""

    def __init__(self, blocks: tuple[int, ...], channels: int, classes: int, width: float, rho: float) -> None:
        super().__init__()
        stem = scaled(64, width)
        self.conv1 = convolution(channels, stem, 3, stride=stem_stride(rho))
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        stages = []
        inputs = stem
        for number, count in enumerate(blocks):
            outputs = scaled(64 * 2**number, width)
            stage = []
            for position in range(count):
                stride = 2 if number > 0 and position == 0 else 1
                stage.append(BasicBlock(inputs, outputs, stride))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return one logit per class."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet18(*, input: tuple[int, int, int], classes: int, alpha: float = 1.0, rho: float = 1.0) -> ResNet:
    """Build ResNet18: 17 ReLU layers, 557,056 ReLUs at 3x32x32."""
    return ResNet((2, 2, 2, 2), input[0], classes, alpha, rho)


def resnet34(*, input: tuple[int, int, int], classes: int, alpha: float = 1.0, rho: float = 1.0) -> ResNet:
    """Build ResNet34: 33 ReLU layers, 966,656 ReLUs at 3x32x32."""
    return ResNet((3, 4, 6, 3), input[0], classes, alpha, rho)
