"""The training loop of the reward model: visits in, the best weights out, resumable at any step.

Legend: B batch, W slates of each example, K slate size, S signals.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.data.feedback import Feedback
from model_export.data.splits import TRAIN, VALID
from model_export.model.generator import HistoryBatch
from model_export.progress import Progress as Bar
from model_export.reward.config import RewardConfig
from model_export.reward.model import RewardModel
from model_export.reward.visits import Int64, VisitCollator, shuffled_visits

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "reward.pt"
METRICS = "metrics.jsonl"
EVALUATION_BATCH = 512


@dataclass(kw_only=True)
class RunState:
    """Where a run stands."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_epoch: int = -1
    epoch_loss_sum: float = 0.0


class RewardTrainer:
    """Trains one reward model in one run folder."""

    def __init__(
        self,
        config: RewardConfig,
        model: RewardModel,
        feedback: Feedback,
        collator: VisitCollator,
        signals: Int64,
        out: Path,
    ) -> None:
        self._config = config
        self._model = model
        self._feedback = feedback
        self._collator = collator
        self._signals = signals
        self._out = out
        self._train, self._valid = feedback.visits(TRAIN), feedback.visits(VALID)
        if len(self._train) == 0:
            raise ValueError("there are no training visits: nothing was shown before the first split")
        if config.residual:
            self._train = self._train[feedback.lengths(self._train) >= 2]
            if len(self._train) == 0:
                raise ValueError("no training visit has two items: leave reward.residual off")
        self._num_steps = math.ceil(len(self._train) / config.batch_size)
        self._optimizer = _optimizer(model, config)
        self.state = RunState()

    def run(self, bar: Bar) -> Path:
        """Trains to the end, from the checkpoint if there is one; returns the file of the best weights."""
        self._out.mkdir(parents=True, exist_ok=True)
        if (self._out / CHECKPOINT).exists():
            self._load()
        self._drop_later_metrics()
        if self._config.residual and self.state.step == 0 and len(self._valid):
            # Without company it is the model that it starts from: an epoch that does worse is none.
            self.state.best_loss = sum(self._valid_losses())
            _write(self._out / WEIGHTS, self._model.state_dict())
        self._model.train()
        with bar.task("reward model", self._config.max_epochs * self._num_steps, done=self.state.step) as task:
            while self.state.epoch < self._config.max_epochs and not self._ran_out_of_patience():
                self._epoch(task)
        return self._out / WEIGHTS

    def _epoch(self, task: "Bar.Task") -> None:
        state, config = self.state, self._config
        order = np.random.default_rng([config.seed, state.epoch])
        started = time.monotonic()
        for place, visits in enumerate(shuffled_visits(self._feedback, self._train, config.batch_size, order)):
            if place < state.step_in_epoch:
                continue  # done before the run was interrupted
            state.epoch_loss_sum += self._step(visits)
            state.step += 1
            state.step_in_epoch += 1
            task.advance(1, f"epoch {state.epoch + 1}, loss {state.epoch_loss_sum / state.step_in_epoch:.4f}")
            if state.step % config.checkpoint_every == 0:
                self._save()
        self._end_epoch(time.monotonic() - started)

    def _step(self, visits: Int64) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(self.state.step)
        batch = self._collator.visits(self._feedback, visits, self._signals)
        inputs = replace(batch.inputs, history=_emptied(batch.inputs.history, self._config.history_dropout))
        loss = signal_loss(self._model(inputs), batch.signal_BWKS).mean(0).sum()
        if not loss.isfinite():
            value = float(loss.detach())
            raise ValueError(f"the loss of step {self.state.step} is {value}: lower reward.learning_rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_gradient_norm)
        self._optimizer.step()
        return float(loss.detach())

    def _end_epoch(self, seconds: float) -> None:
        state = self.state
        row: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.step,
            "loss": state.epoch_loss_sum / state.step_in_epoch,
            "learning_rate": self._learning_rate(state.step - 1),
            "train_s": seconds,
        }
        is_best = True
        if len(self._valid):
            losses = self._valid_losses()
            row |= {"valid_loss": sum(losses), "valid_losses": losses}
            is_best = sum(losses) < state.best_loss
            state.best_loss = min(state.best_loss, sum(losses))
        if is_best:
            state.best_epoch = state.epoch
            _write(self._out / WEIGHTS, self._model.state_dict())
        with (self._out / METRICS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        state.epoch += 1
        state.step_in_epoch = 0
        state.epoch_loss_sum = 0.0
        self._save()

    @torch.no_grad()
    def _valid_losses(self) -> list[float]:
        """Mean cross-entropy of each signal over the validation impressions."""
        self._model.eval()
        sums, count = torch.zeros(len(self._signals), dtype=torch.float64), 0
        for start in range(0, len(self._valid), EVALUATION_BATCH):
            batch = self._collator.visits(self._feedback, self._valid[start : start + EVALUATION_BATCH], self._signals)
            loss_FS = signal_loss(self._model(batch.inputs), batch.signal_BWKS)
            sums += loss_FS.sum(0).cpu()
            count += len(loss_FS)
        self._model.train()
        losses: list[float] = (sums / count).tolist()
        return losses

    def _ran_out_of_patience(self) -> bool:
        waited = self.state.epoch - 1 - self.state.best_epoch
        return 0 < self._config.patience <= waited

    def _learning_rate(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, self._config.warmup_steps))
        share = step / (self._config.max_epochs * self._num_steps)
        return self._config.learning_rate * warmup * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share)))

    def _save(self) -> None:
        is_on_gpu = next(self._model.parameters()).is_cuda
        state = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "state": asdict(self.state),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if is_on_gpu else None,
        }
        _write(self._out / CHECKPOINT, state)

    def _load(self) -> None:
        state = torch.load(self._out / CHECKPOINT, weights_only=True, map_location="cpu")
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if next(self._model.parameters()).is_cuda and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.state = RunState(**state["state"])

    def _drop_later_metrics(self) -> None:
        """Forgets rows of epochs that the checkpoint has not reached: they will be run again."""
        file = self._out / METRICS
        if file.exists():
            rows = file.read_text().splitlines(keepends=True)
            file.write_text("".join(rows[: self.state.epoch]))


def signal_loss(logits_BWKS: Tensor, signal_BWKS: Tensor) -> Tensor:
    """Cross-entropy [F, S] of the impressions of a batch; a signal may be a share."""
    is_shown = ~signal_BWKS[..., 0].isnan()
    return F.binary_cross_entropy_with_logits(logits_BWKS[is_shown], signal_BWKS[is_shown], reduction="none")


def _optimizer(model: RewardModel, config: RewardConfig) -> torch.optim.AdamW:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learning if parameter.ndim >= 2]
    vectors = [parameter for parameter in learning if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _emptied(history: HistoryBatch, share: float) -> HistoryBatch:
    """Some users as if they were new: length 0 hides every event."""
    if share == 0:
        return history
    keep_B = torch.rand(history.lengths_B.shape, device=history.lengths_B.device) >= share
    return replace(history, lengths_B=(history.lengths_B * keep_B).to(history.lengths_B.dtype))


def _write(path: Path, state: Any) -> None:
    partial = path.with_name(f".{path.name}.writing")
    torch.save(state, partial)
    partial.replace(path)
