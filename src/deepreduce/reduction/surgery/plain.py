"""Which layers are what their class says: others may compute anything, and are left as they are."""

from __future__ import annotations

from torch import nn

_TRANSPARENT = (nn.Identity, nn.modules.dropout._DropoutNd)


def is_plain_convolution(module: nn.Module | None) -> bool:
    """Tell whether a module is a two-dimensional convolution that pads with a number of zeros."""
    return (
        isinstance(module, nn.Conv2d)
        and not is_extended(module, nn.Conv2d)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def is_affine(module: nn.Module | None) -> bool:
    """Tell whether a module is a batch norm that treats every position of a map alike, whatever the others hold."""
    return (
        isinstance(module, nn.BatchNorm2d)
        and module.running_mean is not None
        and not is_extended(module, nn.BatchNorm2d)
    )


def is_transparent(module: nn.Module | None) -> bool:
    """Tell whether a module gives what it reads, in evaluation."""
    return isinstance(module, _TRANSPARENT) and not (module._forward_hooks or module._forward_pre_hooks)


def is_extended(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a module computes something else than its kind: by hooks, or by methods of its own."""
    methods = ("forward", "_conv_forward", "__call__")
    own = any(getattr(type(module), name, None) is not getattr(kind, name, None) for name in methods)
    return own or bool(module._forward_hooks or module._forward_pre_hooks)


def padding_of(convolution: nn.Conv2d) -> tuple[int, int]:
    """Return the zeros above and below, and those on the left and right, of a plain convolution."""
    high, wide = map(int, convolution.padding)
    return high, wide
