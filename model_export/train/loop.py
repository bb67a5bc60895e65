"""The training loop: examples in, the best weights out, resumable at any step."""

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.model.generator import Generator, HistoryBatch
from model_export.model.trie import TriePaths
from model_export.progress import Progress as Bar
from model_export.train.balancing import ExpertBalancer, added, load_figures
from model_export.train.batches import Collator, shuffled_batches, training_examples
from model_export.train.catalog import TrainingCatalog
from model_export.train.checkpoint import Progress, load_checkpoint, save_checkpoint, save_weights
from model_export.train.config import TrainConfig
from model_export.train.objective import Objective
from model_export.train.precision import autocast
from model_export.train.validation import Validator

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "generator.pt"
METRICS = "metrics.jsonl"


class Trainer:
    """Trains one generator in one run folder."""

    def __init__(
        self,
        config: TrainConfig,
        generator: Generator,
        prepared: PreparedData,
        catalog: TrainingCatalog,
        out: Path,
    ) -> None:
        self.config = config
        self.generator = generator
        self.out = out
        self._device = generator.start_D.device
        self._examples = training_examples(prepared, config.min_target_items)
        self._collator = Collator(prepared, catalog, generator.spec, self._device)
        self._objective = Objective(config, self._collator, TriePaths.of(catalog.snapshot, self._device))
        self._validator = Validator(config, prepared, catalog, self._collator)
        self._balancer = ExpertBalancer(generator)
        self._optimizer = _optimizer(generator, config)
        self._last_epoch = min(config.stop_epoch or config.max_epochs, config.max_epochs)
        self._num_steps = math.ceil(len(self._examples) / config.batch_size)
        self.progress = Progress()

    def run(self, bar: Bar) -> Path:
        """Trains to the end, from the checkpoint if there is one; returns the file of the best weights."""
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.out / CHECKPOINT
        if checkpoint.exists():
            self.progress = load_checkpoint(checkpoint, self.generator, self._optimizer)
        self._drop_later_metrics()
        self.generator.train()
        total = self._last_epoch * self._num_steps
        with bar.task("training", total, done=self.progress.step) as task:
            while self.progress.epoch < self._last_epoch and not self._ran_out_of_patience():
                self._epoch(task)
        return self.out / WEIGHTS

    def _epoch(self, task: "Bar.Task") -> None:
        progress = self.progress
        order = np.random.default_rng([self.config.seed, progress.epoch])
        started = time.monotonic()
        for place, examples in enumerate(shuffled_batches(self._examples, self.config.batch_size, order)):
            if place < progress.step_in_epoch:
                continue  # done before the run was interrupted
            progress.epoch_loss_sum += self._step(examples)
            progress.step += 1
            progress.step_in_epoch += 1
            task.advance(1, f"epoch {progress.epoch + 1}, loss {progress.epoch_loss_sum / progress.step_in_epoch:.3f}")
            if progress.step % self.config.checkpoint_every == 0:
                save_checkpoint(self.out / CHECKPOINT, self.generator, self._optimizer, progress)
        self._end_epoch(time.monotonic() - started)

    def _step(self, examples: Examples) -> float:
        rate = self._learning_rate(self.progress.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        history = _emptied(self._collator.history(examples), self.config.history_dropout)
        with autocast(self.config.precision, self._device):
            losses = self._objective.losses(self.generator, history, examples)
        loss = losses.mean()
        if not loss.isfinite():
            value = float(loss.detach())
            raise ValueError(f"the loss of step {self.progress.step} is {value}: lower train.learning_rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), self.config.max_gradient_norm)
        self._optimizer.step()
        load = self._balancer.after_step(losses.is_target_NJ, self.generator.spec.num_levels)
        self.progress.expert_load = added(self.progress.expert_load, load)
        return float(loss.detach())

    def _end_epoch(self, seconds: float) -> None:
        progress = self.progress
        row: dict[str, float] = {
            "epoch": progress.epoch,
            "step": progress.step,
            "loss": progress.epoch_loss_sum / progress.step_in_epoch,
            "learning_rate": self._learning_rate(progress.step - 1),
            "train_s": seconds,
            **load_figures(progress.expert_load),
        }
        is_best = True
        if len(self._validator):
            validation = self._validator.measure(self.generator, self._objective)
            row |= {f"valid_{name}": value for name, value in asdict(validation).items()}
            is_best = validation.ndcg_10 > progress.best_ndcg
            progress.best_ndcg = max(progress.best_ndcg, validation.ndcg_10)
        if is_best:
            progress.best_epoch = progress.epoch
            save_weights(self.out / WEIGHTS, self.generator)
        with (self.out / METRICS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.epoch_loss_sum = 0.0
        progress.expert_load = []
        save_checkpoint(self.out / CHECKPOINT, self.generator, self._optimizer, progress)

    def _ran_out_of_patience(self) -> bool:
        waited = self.progress.epoch - 1 - self.progress.best_epoch
        return 0 < self.config.patience <= waited

    def _learning_rate(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(1, self.config.warmup_steps))
        share = step / (self.config.max_epochs * self._num_steps)
        return self.config.learning_rate * warmup * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * share)))

    def _drop_later_metrics(self) -> None:
        """Forgets rows of epochs that the checkpoint has not reached: they will be run again."""
        file = self.out / METRICS
        if file.exists():
            # One row an epoch, in order; a row cut short by a crash is of an epoch that no checkpoint has reached.
            rows = file.read_text().splitlines(keepends=True)
            file.write_text("".join(rows[: self.progress.epoch]))


def _optimizer(generator: Generator, config: TrainConfig) -> torch.optim.AdamW:
    matrices = [parameter for parameter in generator.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in generator.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


def _emptied(history: HistoryBatch, share: float) -> HistoryBatch:
    """Some users as if they were new: length 0 hides every event."""
    if share == 0:
        return history
    keep_B = torch.rand(history.lengths_B.shape, device=history.lengths_B.device) >= share
    lengths_B: Tensor = history.lengths_B * keep_B
    return replace(history, lengths_B=lengths_B.to(history.lengths_B.dtype))
