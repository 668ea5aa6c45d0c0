"""The state of a training job between epochs, as safetensors: weights, momentum, and what they belong to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .._files import replacing
from .config import TrainingConfig

_FORMAT = "deepreduce.checkpoint.1"


def write_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, epoch: int, seed: int, config: TrainingConfig
) -> None:
    """Write the state after `epoch` finished epochs, whole or not at all.

    Raises:
        RunError: if the disk is full or the folder cannot be written.
    """
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum.detach().cpu().contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "epoch": str(epoch), "job": _job(seed, config)})


def read_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, *, seed: int, config: TrainingConfig
) -> int:
    """Load a checkpoint of the same job into network and optimizer.

    Returns:
        The number of finished epochs; 0 if there is no checkpoint, or one that is damaged or of another job. Such a
        file is moved aside to `NAME.damaged`, and training starts from the beginning.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            epoch = int(metadata.get("epoch", 0))
            if metadata.get("format") != _FORMAT or metadata.get("job") != _job(seed, config):
                raise ValueError("of another job")
            if not 0 < epoch < config.epochs:
                raise ValueError("epoch out of range")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        own = network.state_dict()
        state = {name: tensors[f"network.{name}"] for name in own}
        if any(own[name].shape != value.shape or own[name].dtype != value.dtype for name, value in state.items()):
            raise ValueError("of another network")
        momenta = {
            parameter: tensors[f"momentum.{name}"].to(parameter.device, copy=True)
            for name, parameter in network.named_parameters()
            if f"momentum.{name}" in tensors
        }
        if any(parameter.shape != momentum.shape for parameter, momentum in momenta.items()):
            raise ValueError("of another network")
    except (SafetensorError, ValueError, KeyError, OSError):
        path.replace(path.with_name(path.name + ".damaged"))
        return 0
    network.load_state_dict(state)
    for parameter, momentum in momenta.items():
        optimizer.state[parameter]["momentum_buffer"] = momentum.contiguous(
            memory_format=torch.channels_last if momentum.dim() == 4 else torch.contiguous_format
        )
    return epoch


def _job(seed: int, config: TrainingConfig) -> str:
    text = json.dumps([seed, config.to_json()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
