"""Checkpoints: everything that a run needs to go on to the same loss."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(kw_only=True)
class Progress:
    """Where a run stands."""

    epoch: int = 0
    """Epochs begun, from 0."""
    step_in_epoch: int = 0
    """Steps done in this epoch."""
    step: int = 0
    """Steps done in all."""
    best_ndcg: float = -1.0
    """Best validation NDCG@10 so far."""
    best_epoch: int = -1
    """The epoch it came from."""
    epoch_loss_sum: float = 0.0
    """Sum of the losses of this epoch's steps."""
    expert_load: list[list[int]] = field(default_factory=list)
    """Per mixture and expert the tokens of this epoch that chose it."""


def save_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Writes weights, optimizer, progress and the random state in one rename."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "rng": torch.get_rng_state(),
        # History dropout and the layers' dropout draw on the model's device.
        "cuda_rng": torch.cuda.get_rng_state() if _is_on_gpu(model) else None,
    }
    _write(path, state)


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Brings model, optimizer and the random state back; returns the progress."""
    # Random states are tensors of the CPU; weights and moments move to where the model is.
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if _is_on_gpu(model) and state["cuda_rng"] is not None:
        torch.cuda.set_rng_state(state["cuda_rng"])
    return Progress(**state["progress"])


def save_weights(path: Path, model: torch.nn.Module) -> None:
    """Writes the weights alone, in one rename."""
    _write(path, model.state_dict())


def _is_on_gpu(model: torch.nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _write(path: Path, state: Any) -> None:
    partial = path.with_name(f".{path.name}.writing")
    torch.save(state, partial)
    partial.replace(path)
