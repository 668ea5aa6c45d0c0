"""Networks as users write them: every way to call a ReLU, and every shape that makes removing one hard.

All take 3x16x16 images, return 5 logits, and are small. `ZOO` names those that the program must take as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

INPUT = (3, 16, 16)
CLASSES = 5


class Head(nn.Module):
    """Global average pooling and a classifier."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Functions(nn.Module):
    """One network for each spelling of a ReLU, given as a function of one tensor."""

    def __init__(self, spell: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.head = Head(8)
        self.spell = spell

    def forward(self, x: Tensor) -> Tensor:
        x = self.spell(self.conv1(x))
        return self.head(self.spell(self.conv2(x)))


class Statements(nn.Module):
    """ReLUs in place whose value is dropped, one of them the last statement but one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x.relu_()
        y = self.conv2(x)
        y.add_(x)
        F.relu(y, inplace=True)
        y = self.out(y.mean((2, 3)))
        y.relu_()
        return y


class SharedInPlace(nn.Module):
    """One in-place nn.ReLU for everything; the tensors it overwrites are read before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)
        self.same = nn.Identity()
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        identity = self.same(x)
        before = self.conv3(x)
        y = self.conv2(self.relu(x))
        y += identity
        shortcut = y
        z = self.conv3(self.relu(y)) + shortcut + before
        self.relu(z)
        return self.head(z)


class Augmented(nn.Module):
    """`+=` writes into a tensor that another name still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = F.relu(x)
        kept = y
        y += self.conv2(y)
        y *= 0.5
        rows = x.shape[2]
        all_rows = rows
        rows -= 1
        return self.head(kept + x * (rows / all_rows))


class Bottleneck(nn.Module):
    """As in torchvision: one shared ReLU, `downsample`, `out += identity`."""

    def __init__(self, inputs: int, planes: int, stride: int, inplace: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=inplace)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * planes))
            if stride != 1 or inputs != 4 * planes
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet50Like(nn.Module):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=inplace)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Bottleneck(8, 4, 1, inplace), Bottleneck(16, 4, 1, inplace))
        self.layer2 = nn.Sequential(Bottleneck(16, 8, 2, inplace), Bottleneck(32, 8, 1, inplace))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ConvBNReLU6(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.use_shortcut = stride == 1 and inputs == outputs
        hidden = 4 * inputs
        self.conv = nn.Sequential(
            ConvBNReLU6(inputs, hidden, 1),
            ConvBNReLU6(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


class MobileNetV2Like(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBNReLU6(3, 8, 3, 2), InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).reshape(x.shape[0], -1))


class BatchNormAct2d(nn.BatchNorm2d):
    """An imitation of timm's: functional batch norm, dropout and activation in one module."""

    def __init__(self, channels: int, act: bool = True) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "expected 4D input")
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        training = True if self.training else (self.running_mean is None) and (self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            training,
            factor,
            self.eps,
        )
        return self.act(self.drop(x))


class PlainSubclass(nn.BatchNorm2d):
    """A subclass that keeps the forward of its parent."""


class TimmLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), BatchNormAct2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), BatchNormAct2d(8, act=False)
        self.bn3, self.act3 = PlainSubclass(8), nn.ReLU(inplace=True)
        self.drop_rate = 0.3
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.act3(self.bn3(self.bn2(self.conv2(x)) + x))
        return self.head(F.dropout(x, p=self.drop_rate, training=self.training))


class FunctionalEverything(nn.Module):
    """Parameters outside modules, functional batch norm and dropout, a buffer, max pooling as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.gain = nn.Parameter(torch.rand(8, 1, 1))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.register_buffer("offset", torch.rand(8, 1, 1), persistent=False)
        self.scales = nn.ParameterList([nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(2.0))])
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=1)
        x = F.batch_norm(x, self.mean, self.var, training=self.training)
        x = F.relu(input=x * F.relu(self.gain) + self.offset) * self.scales[0]
        x = F.max_pool2d(x, 2)
        x = F.dropout(x, 0.5, self.training)
        x = torch.relu(x - 0.1) * self.scales[1]
        return self.out(F.avg_pool2d(x, 8).flatten(1))


class Lists(nn.Module):
    """ReLUs in ModuleList, nested Sequential, and one block used at two places, with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, 8, 3, padding=1), nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())) for i in (3, 8)
        )
        self.shared = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.tied1, self.tied2 = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.tied2.weight = self.tied1.weight
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = self.shared(F.avg_pool2d(self.shared(x), 2))
        return self.head(F.relu(self.tied2(F.relu(self.tied1(x)))))


class DenseNetLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = Head(20)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.conv0(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)), inplace=True)))
        return self.head(torch.cat(features, 1))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.reduce, self.expand = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        x = x * torch.sigmoid(gate)
        return self.head(F.relu(self.conv2(x)))


class UNetLike(nn.Module):
    """Resolutions that come back, and two-dimensional features at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.mix = nn.Conv2d(16, 8, 3, padding=1)
        self.hidden, self.norm, self.out = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        c = F.relu(self.mix(torch.cat([a, self.up(b)], 1)))
        return self.out(F.relu(self.norm(self.hidden(c.mean((2, 3))))))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.block, x, use_reentrant=False)
        x = checkpoint(lambda z: F.relu(self.conv(z)), x, use_reentrant=False)
        return self.head(x)


class OneDimensional(nn.Module):
    """A network that unrolls the image: Conv1d and features of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 8, 5, padding=2), nn.Conv1d(8, 8, 5, padding=2, stride=4)
        self.out = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x.flatten(2)))
        return self.out(F.relu(self.conv2(x)).mean(2))


class ChannelShuffle(nn.Module):
    """The ReLU works on five dimensions, as between the halves of a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = Head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        n, c, h, w = x.size()
        x = torch.relu(x.view(n, 2, c // 2, h, w)).transpose(1, 2).contiguous().view(n, -1, h, w)
        return self.head(F.relu(self.conv2(x)))


SPELLINGS: dict[str, Callable[[Tensor], Any]] = {
    "F.relu": lambda x: F.relu(x),
    "F.relu(input=)": lambda x: F.relu(input=x),
    "F.relu(input=, inplace=)": lambda x: F.relu(input=x, inplace=True),
    "F.relu(x, True)": lambda x: F.relu(x, True),
    "F.relu_": lambda x: F.relu_(x),
    "torch.relu": lambda x: torch.relu(x),
    "torch.relu(input=)": lambda x: torch.relu(input=x),
    "torch.relu_": lambda x: torch.relu_(x),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "Tensor.clamp(min=0)": lambda x: x.clamp(min=0),
    "Tensor.clamp_(0)": lambda x: x.clamp_(0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(0.0),
    "Tensor.clip(0, None)": lambda x: x.clip(0, None),
    "torch.clamp(min=0)": lambda x: torch.clamp(x, min=0.0),
    "torch.clamp(0, inf)": lambda x: torch.clamp(x, 0, float("inf")),
    "torch.clamp_": lambda x: torch.clamp_(x, 0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "F.threshold(kw)": lambda x: F.threshold(input=x, threshold=0.0, value=0.0),
    "F.threshold_": lambda x: F.threshold_(x, 0, 0),
    "nn.Threshold": nn.Threshold(0, 0),
    "F.relu6": lambda x: F.relu6(x, inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "F.hardtanh(kw)": lambda x: F.hardtanh(input=x, max_val=6.0, min_val=0.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "nn.Hardtanh": nn.Hardtanh(0, 6, inplace=True),
    "Tensor.clamp(0, 6)": lambda x: x.clamp(0, 6),
    "nn.ReLU6": nn.ReLU6(),
}

ZOO: dict[str, Callable[[], nn.Module]] = {
    "statements": Statements,
    "shared in place": SharedInPlace,
    "augmented": Augmented,
    "resnet50": ResNet50Like,
    "mobilenet_v2": MobileNetV2Like,
    "timm": TimmLike,
    "functional": FunctionalEverything,
    "lists": Lists,
    "densenet": DenseNetLike,
    "squeeze-excite": SqueezeExcite,
    "unet": UNetLike,
    "checkpointed": Checkpointed,
    "one dimension": OneDimensional,
    "channel shuffle": ChannelShuffle,
}

_RELUS = {
    F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardtanh_, F.threshold,
    F.threshold_, torch.threshold, torch.clamp, torch.clamp_, torch.clamp_min, Tensor.clamp, Tensor.clamp_,
    Tensor.clamp_min, Tensor.clamp_min_, Tensor.clip,
}  # fmt: skip


class _Patch(TorchFunctionMode):
    """Counts every ReLU of an image that PyTorch computes, and makes those of some numbers the identity."""

    def __init__(self, removed: set[int] | None) -> None:
        super().__init__()
        self.removed = removed
        self.sizes: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RELUS:
            x = args[0] if args else kwargs["input"]
            if not isinstance(x, nn.Parameter):
                self.sizes.append(x.numel())
                if self.removed is None or len(self.sizes) - 1 in self.removed:
                    return x if _in_place(func, args, kwargs) else x.clone()
        return func(*args, **kwargs)


def _in_place(func: Any, args: Any, kwargs: Any) -> bool:
    return func.__name__.endswith("_") or kwargs.get("inplace", False) or (func is F.relu and len(args) > 1 and args[1])


@contextmanager
def without_relus(removed: set[int] | None) -> Iterator[_Patch]:
    """Run plain PyTorch with the ReLU calls of these numbers (None: all of them) patched into the identity."""
    with _Patch(removed) as patch:
        yield patch


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics and weights that a trained network would have, so that an error shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            positive = "var" in name or "gain" in name
            with torch.no_grad():
                tensor.copy_(
                    values + 0.5
                    if positive
                    else (values - 0.5) * (3 / max(tensor[:1].numel() if tensor.dim() else 1, 1) ** 0.5)
                )
    return network
