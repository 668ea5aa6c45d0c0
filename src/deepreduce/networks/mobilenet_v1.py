"""MobileNetV1 for small images (Howard et al., 2017): depthwise separable convolutions, two ReLU layers a block."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ._layers import convolution, initialise, scaled, stem_stride

# Output channels and stride of the thirteen blocks; at 32x32 the stem does not subsample.
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip


class SeparableBlock(nn.Module):
    """A depthwise 3x3 convolution and a pointwise 1x1 convolution, each with batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = convolution(inputs, inputs, 3, stride=stride, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.pointwise = convolution(inputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Return the block's feature maps."""
        x = self.relu1(self.bn1(self.depthwise(x)))
        y: Tensor = self.relu2(self.bn2(self.pointwise(x)))
        return y


class MobileNetV1(nn.Module):
    """A stem, thirteen separable blocks, global average pooling and a linear classifier."""

    def __init__(self, channels: int, classes: int, width: float, rho: float) -> None:
        super().__init__()
        inputs = scaled(32, width)
        self.conv1 = convolution(channels, inputs, 3, stride=stem_stride(rho))
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        blocks = []
        for outputs, stride in _BLOCKS:
            blocks.append(SeparableBlock(inputs, scaled(outputs, width), stride))
            inputs = scaled(outputs, width)
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialise(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return one logit per class."""
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def mobilenet_v1(*, input: tuple[int, int, int], classes: int, alpha: float = 1.0, rho: float = 1.0) -> MobileNetV1:
    """Build MobileNetV1: 27 ReLU layers, 411,648 ReLUs at 3x32x32."""
    return MobileNetV1(input[0], classes, alpha, rho)
