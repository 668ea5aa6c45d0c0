"""What a bug report or a result needs to name: versions, processor, devices."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import time
from pathlib import Path
from typing import Any

from ._cores import available_cores
from ._version import __version__
from .errors import MissingExtraError

_PACKAGES = (
    "torch", "numpy", "safetensors", "accelerate", "torch-pruning", "pyarrow", "pillow", "scikit-learn", "rich",
    "jaxtyping", "timm", "plotly", "matplotlib", "ray", "tensorboard", "seal-python",
    "rbcl", "cryptography",
)  # fmt: skip


def environment(*, command: list[str] | None = None) -> dict[str, Any]:
    """Describe this machine and installation.

    Args:
        command: as it was typed; None takes the one of this process, without the folder of the program.
    """
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    typed = command if command is not None else [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {
        "deepreduce": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "features": _features(),
        "cores": available_cores(),
        "devices": _devices(),
        "versions": versions,
        "kernels": _kernels(),
        "command": " ".join(typed),
        "date": time.strftime("%Y-%m-%d"),
    }


def _devices() -> list[str]:
    """Name the GPUs; there is no PyTorch where only the parties of private inference run."""
    try:
        import torch
    except ModuleNotFoundError:
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def _kernels() -> dict[str, str]:
    """Name what the private engine computes with; empty where its packages are not installed."""
    try:
        from .private import homomorphic, ring, transfer
        from .private.garbling import describe
        from .private.protocol import lookup

        backends = {"transfer": transfer.default_backend(), "ring": ring.default_backend()}
        backends |= {"homomorphic": homomorphic.default_backend(), "lookup": lookup.default_backend()}
        return {"garbling": str(describe()["backend"]), **backends}
    except (ImportError, MissingExtraError):
        return {}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _features() -> list[str]:
    """Name the processor features that decide speed here: vector units and AES instructions."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return []
    for line in info.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.split(":", 1)[1].split())
            wanted = ("aes", "vaes", "pclmulqdq", "sse4_1", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd")
            return [name for name in wanted if name in present]
    return []
