"""From a name to a network: the reference networks, a user's own function, a model of timm."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from .._arguments import check_type, shown
from ..errors import MissingExtraError, NetworkError, UsageError, near_misses, problem
from .mobilenet_v1 import mobilenet_v1
from .resnet import resnet18, resnet34
from .spec import NetworkSpec
from .vgg16 import vgg16
from .wide_resnet import wide_resnet_22_8

REFERENCE: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "mobilenet_v1": mobilenet_v1,
    "vgg16": vgg16,
    "wide_resnet_22_8": wide_resnet_22_8,
}


def is_reference(name: str) -> bool:
    """Tell whether `name` is a network of ours, which takes alpha and rho itself."""
    return name in REFERENCE


def build(spec: NetworkSpec, *, alpha: float = 1.0, rho: float = 1.0) -> nn.Module:
    """Build a network with fresh weights (a user's function may bring its own).

    Args:
        spec: which network, for which images.
        alpha: channel scale, in (0, 1]; multiplies `spec.width`. Reference networks only.
        rho: resolution scale, 1, 1/2, 1/4, ...; realised as stem stride 1/rho. Reference networks only.

    Raises:
        UsageError: if no network has this name, or alpha, rho or a width is asked of a network that does not take one.
        NetworkError: if the user's function fails or does not return a module.
        MissingExtraError: for a model of timm, if that is not installed.
    """
    if not isinstance(spec, NetworkSpec):
        raise UsageError(
            problem(
                "a network is built from a NetworkSpec, which says what images and classes it is for",
                got=shown(spec),
                remedy="pass one, such as deepreduce.NetworkSpec('resnet18', (3, 32, 32), 100)",
                where="spec",
            )
        )
    check_type("alpha", alpha, float, where="--alpha")
    check_type("rho", rho, float, where="--rho")
    if spec.name in REFERENCE:
        return REFERENCE[spec.name](input=spec.input, classes=spec.classes, alpha=alpha * spec.width, rho=rho)
    if alpha != 1 or rho != 1 or spec.width != 1:
        raise UsageError(
            problem(
                "only reference networks are built at another width or resolution",
                got=f"{spec.name} with width {spec.width:g}, alpha {alpha:g}, rho {rho:g}",
                remedy="build it at full size; deepreduce scales its channels and resolution afterwards",
                where="NETWORK",
            )
        )
    if spec.name.startswith("timm:"):
        return _from_timm(spec)
    if ":" in spec.name:
        return _from_function(spec)
    raise _unknown(spec.name)


def check_name(name: str) -> None:
    """Refuse a name that no network has, without building one; a user's module is imported.

    Raises:
        UsageError, MissingExtraError: as for `build`.
    """
    if name.startswith("timm:"):
        _timm_name(name)
    elif ":" in name:
        _function(name)
    elif name not in REFERENCE:
        raise _unknown(name)


def _unknown(name: str) -> UsageError:
    return UsageError(
        problem(
            "a network is a reference name, package.module:function, or timm:NAME",
            got=f"{name!r}{near_misses(name, list(REFERENCE))}",
            remedy=f"use one of {', '.join(REFERENCE)}, or name a function that returns your network",
            where="NETWORK",
        )
    )


def _timm_name(given: str) -> str:
    """Return the name that timm knows; names that would fetch something are refused."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            problem(
                "a name that begins with timm: needs the package timm",
                got=f"{given!r}, and timm is not installed",
                remedy="pip install 'deepreduce[zoo]'",
                where="NETWORK",
            )
        ) from error
    name = given.removeprefix("timm:")
    known = timm.list_models()
    if name not in known:
        raise UsageError(
            problem(
                "the model must be registered in timm",
                got=f"{name!r}{near_misses(name, known)}",
                remedy="list the names with timm.list_models()",
                where="NETWORK",
            )
        )
    return name


def _from_timm(spec: NetworkSpec) -> nn.Module:
    """Build a registered timm model without weights."""
    name = _timm_name(spec.name)
    import timm

    try:
        module = timm.create_model(name, pretrained=False, num_classes=spec.classes, in_chans=spec.input[0])
    except Exception as error:  # timm raises many types
        raise NetworkError(
            problem(
                f"timm must build {name} for {spec.classes} classes and {spec.input[0]} channels",
                got=f"{type(error).__name__}: {error}",
                remedy="wrap it in a function of your own and name that",
                where="NETWORK",
            )
        ) from error
    return _module(module, spec, "timm")


def _function(name: str) -> tuple[Callable[..., object], str | None]:
    """Import `package.module:function`; return it and the file of its module."""
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does, so that a file beside the user is found
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            problem(
                f"the module {module_name!r} must be importable",
                got=f"{type(error).__name__}: {error}",
                remedy="run from the folder that holds it, or install it",
                where="NETWORK",
            )
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function) or isinstance(function, nn.Module):
        names = [
            name
            for name, value in vars(module).items()
            if callable(value) and not name.startswith("_") and not isinstance(value, nn.Module)
        ]
        raise UsageError(
            problem(
                f"the module {module_name!r} must have a function {function_name!r} that returns the network",
                got=f"{'no' if function is None else 'not a'} function{near_misses(function_name, names)}",
                remedy="name a function that returns your network",
                where=module.__file__,
            )
        )
    return function, module.__file__


def _from_function(spec: NetworkSpec) -> nn.Module:
    """Call `package.module:function`.

    The function may take `num_classes` and `in_channels` (or `classes`, `in_chans`); it is given what it takes.
    """
    function, file = _function(spec.name)
    offered = {
        "num_classes": spec.classes,
        "classes": spec.classes,
        "in_channels": spec.input[0],
        "in_chans": spec.input[0],
    }
    try:
        accepted = inspect.signature(function).parameters
        network = function(**{name: value for name, value in offered.items() if name in accepted})
    except Exception as error:  # the user's code may raise anything
        raise NetworkError(
            problem(
                f"{spec.name} must return a network when called",
                got=f"{type(error).__name__}: {error}",
                remedy="give its arguments defaults, or wrap it in a function that takes none",
                where=file,
            )
        ) from error
    return _module(network, spec, file)


def _module(network: object, spec: NetworkSpec, where: object) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise NetworkError(
            problem(
                f"{spec.name} must return a torch.nn.Module",
                got=type(network).__name__,
                remedy="return the network itself",
                where=where,
            )
        )
    return network
