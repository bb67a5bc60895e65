"""Checkpoints of an alignment run: everything it needs to go on to the same loss."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from model_export.align.measurement import Measurement


@dataclass(kw_only=True)
class AlignProgress:
    """Where a run stands."""

    iteration: int = 0
    """Iterations finished."""
    step: int = 0
    """Optimiser steps done in the current iteration."""
    kept_iteration: int = 0
    """Iterations behind the best model; 0: the start."""
    start: dict[str, Any] = field(default_factory=dict)
    """The start's `Measurement`."""
    best: dict[str, Any] = field(default_factory=dict)
    """That of the best model."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the figures of this iteration's steps."""

    @property
    def start_measurement(self) -> Measurement:
        return Measurement(**self.start)

    @property
    def best_measurement(self) -> Measurement:
        return Measurement(**self.best)


def save_align_checkpoint(
    path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: AlignProgress
) -> None:
    """Writes weights, optimizer, progress and the random state in one rename."""
    partial = path.with_name(f".{path.name}.writing")
    on_gpu = next(model.parameters()).is_cuda
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": asdict(progress),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state() if on_gpu else None,
    }
    torch.save(state, partial)
    partial.replace(path)


def load_align_checkpoint(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> AlignProgress:
    """Brings model, optimizer and the random state back; returns the progress."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    if state["cuda_rng"] is not None and next(model.parameters()).is_cuda:
        torch.cuda.set_rng_state(state["cuda_rng"])
    return AlignProgress(**state["progress"])
