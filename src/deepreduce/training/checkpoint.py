"""The state of a training job between epochs, as safetensors: weights, momentum, history, and what they belong to."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .._files import move_aside, replacing
from ..errors import RunError, problem

_FORMAT = "deepreduce.checkpoint.3"


@dataclass
class Checkpoint:
    """A file that holds the state of one job, so that it can be continued.

    Attributes:
        path: of the file.
        job: what the state belongs to, in any words; the state of another job is not used.
        every_seconds: how often it is written, at most after every epoch.
        settings: how the job trains, by name. A state that was made with others is an error: whoever typed another
            option by mistake loses nothing.
        damage: why the file that was found could not be used; empty if it could, or if there was none.
    """

    path: Path
    job: str
    every_seconds: float = 20.0
    settings: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""
    _written_at: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Tell whether it is time to write."""
        return time.monotonic() - self._written_at >= self.every_seconds

    def write(self, network: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the state after the epochs of `history`, whole or not at all.

        Raises:
            RunError: if the disk is full or the folder cannot be written.
        """
        tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        for name, parameter in network.named_parameters():
            momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum.detach().cpu().contiguous()
        metadata = {
            "format": _FORMAT,
            "job": self.job,
            "settings": json.dumps(dict(self.settings)),
            "history": json.dumps(list(history)),
            "sha256": _digest(tensors),
        }
        with replacing(self.path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        self._written_at = time.monotonic()

    def read(self, network: nn.Module, optimizer: torch.optim.Optimizer, *, epochs: int) -> list[dict[str, Any]]:
        """Load the state into network and optimizer, if there is one and all of it is sound.

        Args:
            network: of the same job.
            optimizer: of its parameters.
            epochs: of the whole job.

        Returns:
            The history up to the state, one value per finished epoch; empty if there is no checkpoint, or one that is
            damaged or of another job (`damage` then says why).

        Raises:
            RunError: if the state was made with other settings.
        """
        if not self.path.exists():
            return []
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError("it belongs to another release")
                self._check_settings(json.loads(metadata["settings"]))
                if metadata.get("job") != self.job:
                    raise ValueError("it belongs to another job, or to another teacher")
                history = json.loads(metadata["history"])
                if [line["epoch"] for line in history] != list(range(1, len(history) + 1)):
                    raise ValueError("its history has gaps")
                if not 0 < len(history) < epochs:
                    raise ValueError(f"it is at epoch {len(history)} of {epochs}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if _digest(tensors) != metadata["sha256"]:
                raise ValueError("its tensors have another hash")
            own = network.state_dict()
            state = {name: tensors[f"network.{name}"] for name in own}
            if any(own[name].shape != value.shape or own[name].dtype != value.dtype for name, value in state.items()):
                raise ValueError("it belongs to another network")
            momenta = {
                parameter: tensors[f"momentum.{name}"]
                for name, parameter in network.named_parameters()
                if f"momentum.{name}" in tensors
            }
            if any(parameter.shape != momentum.shape for parameter, momentum in momenta.items()):
                raise ValueError("it belongs to another network")
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
            self.damage = f"{type(error).__name__}: {error}"
            return []
        network.load_state_dict(state)
        for parameter, momentum in momenta.items():
            layout = torch.channels_last if momentum.dim() == 4 else torch.contiguous_format
            # A copy: the tensors that were read lie in the file, which is soon replaced.
            kept = torch.empty_like(momentum, device=parameter.device, memory_format=layout).copy_(momentum)
            optimizer.state[parameter]["momentum_buffer"] = kept
        return list(history)

    def _check_settings(self, theirs: Mapping[str, Any]) -> None:
        names = [name for name in self.settings if theirs.get(name, self.settings[name]) != self.settings[name]]
        if names:
            raise RunError(
                problem(
                    "a network that was stopped goes on with the settings it began with",
                    got=", ".join(f"{name} {theirs[name]} there, {self.settings[name]} here" for name in names),
                    remedy="repeat the settings of the first command, use another folder for --out, or remove this "
                    "file to begin anew",
                    where=self.path,
                )
            )

    def move_damaged_aside(self) -> None:
        """Keep a file that could not be used under `NAME.damaged-N`, beside earlier ones."""
        if self.damage and self.path.exists():
            move_aside(self.path)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        state.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        state.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
