"""Reference networks with alpha and rho, and the way in for a user's own."""

from .mobilenet_v1 import mobilenet_v1
from .registry import REFERENCE, build, check_name, is_reference
from .resnet import resnet18, resnet34
from .spec import NetworkSpec
from .vgg16 import vgg16
from .wide_resnet import wide_resnet_22_8

__all__ = [
    "REFERENCE",
    "NetworkSpec",
    "build",
    "check_name",
    "is_reference",
    "mobilenet_v1",
    "resnet18",
    "resnet34",
    "vgg16",
    "wide_resnet_22_8",
]
