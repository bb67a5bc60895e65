"""Iterative preference alignment: rollouts, training, measurement, and again.

Source: OneRec, arXiv 2502.18965, section 3.4. Legend: P groups of slates, one for each user; S slates of a group.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from model_export.align.candidates import CandidateSearch
from model_export.align.checkpoint import AlignProgress, load_align_checkpoint, save_align_checkpoint
from model_export.align.config import AlignConfig
from model_export.align.measurement import Measurement, Meter, is_kept
from model_export.align.objective import AlignObjective
from model_export.align.rollouts import Rollouts, roll_out
from model_export.data.prepared import PreparedData
from model_export.progress import Progress
from model_export.reward.scorer import SlateScorer
from model_export.train.checkpoint import save_weights
from model_export.train.loop import CHECKPOINT, METRICS, WEIGHTS
from model_export.train.stage import TrainedGenerator

ROLLOUTS = "rollouts.npz"


class Aligner:
    """Aligns one generator, in place, in one run folder.

    The reference policy of an iteration is never held in memory: its logprobs of the rollouts' slates are computed
    once, before the first step.
    """

    def __init__(
        self,
        config: AlignConfig,
        trained: TrainedGenerator,
        scorer: SlateScorer,
        prepared: PreparedData,
        out: Path,
        *,
        truth: SlateScorer | None = None,
    ) -> None:
        self.config = config
        self.generator = trained.generator
        self.out = out
        self.progress = AlignProgress()
        self._scorer = scorer
        self._train = prepared.examples("train")
        if len(self._train) == 0:
            raise ValueError("there are no training examples to align on")
        if self.generator.spec.slate_size < prepared.slate_size:
            raise ValueError("an item-wise generator writes no slates that could be preferred: train.targets = session")
        self._objective = AlignObjective(config, trained, prepared)
        self._meter = Meter(config, trained, prepared, scorer, truth)
        self._search = CandidateSearch(
            trained,
            prepared,
            kind=config.candidates,
            temperature=config.temperature,
            batch_size=config.rollout_batch_size,
        )
        self._optimizer = torch.optim.AdamW(self.generator.parameters(), lr=config.learning_rate, weight_decay=0.0)

    def run(self, bar: Progress) -> Path:
        """Aligns to the end, from the checkpoint if there is one; returns the file of the best weights."""
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint = self.out / CHECKPOINT
        if checkpoint.exists():
            self.progress = load_align_checkpoint(checkpoint, self.generator, self._optimizer)
        else:
            self._measure_start()
        self._drop_later_metrics()
        while self.progress.iteration < self.config.num_iterations and not self._ran_out_of_patience():
            self._iterate(bar)
        (self.out / ROLLOUTS).unlink(missing_ok=True)
        return self.out / WEIGHTS

    def _measure_start(self) -> None:
        start = self._meter.measure()
        self.progress = AlignProgress(start=asdict(start), best=asdict(start))
        save_weights(self.out / WEIGHTS, self.generator)
        (self.out / METRICS).write_text(json.dumps(_row(0, start, is_kept=True)) + "\n")
        self._save()

    def _iterate(self, bar: Progress) -> None:
        config, progress = self.config, self.progress
        started = time.monotonic()
        rollouts = self._rollouts(bar) if config.control == "none" else None
        rollout_s = time.monotonic() - started
        batches = self._batches(len(rollouts)) if rollouts else iter([None] * config.num_steps)
        with bar.task(f"alignment {progress.iteration + 1}", config.num_steps, done=progress.step) as task:
            for step, batch_P in enumerate(batches):
                if step < progress.step:
                    continue  # done before the run was interrupted
                for name, value in self._step(rollouts, batch_P).items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value
                progress.step += 1
                task.advance(1, f"loss {progress.sums['loss'] / progress.step:.3f}")
                if progress.step % config.checkpoint_every == 0:
                    self._save()
        figures = {name: total / config.num_steps for name, total in progress.sums.items()}
        if rollouts:
            figures |= {**rollouts.figures, "drift": self._drift(rollouts)}
        self._end_iteration(figures | {"rollout_s": rollout_s, "iteration_s": time.monotonic() - started}, bar)

    def _rollouts(self, bar: Progress) -> Rollouts:
        """This iteration's rollouts, by the weights at its start; after an interruption those written before it."""
        file, progress = self.out / ROLLOUTS, self.progress
        if progress.step > 0:
            return Rollouts.load(file)
        rollouts = roll_out(
            self.config, self._search, self._scorer, self._objective.logprobs, self._train, progress.iteration, bar
        )
        rollouts.save(file)
        return rollouts

    def _batches(self, num_groups: int) -> Iterator[npt.NDArray[np.int64]]:
        """The groups of each step: shuffled passes, one after the other, cut into batches."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.progress.iteration, 2])
        num_passes = -(-config.num_steps * config.batch_size // num_groups)
        order = np.concatenate([rng.permutation(num_groups) for _ in range(num_passes)])
        for step in range(config.num_steps):
            yield order[step * config.batch_size : (step + 1) * config.batch_size]

    def _step(self, rollouts: Rollouts | None, batch_P: npt.NDArray[np.int64] | None) -> dict[str, float]:
        config, progress = self.config, self.progress
        num_done = progress.iteration * config.num_steps + progress.step
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, (num_done + 1) / max(1, config.warmup_steps))
        # The supervised examples depend on the step alone, so a control sees the same ones.
        rng = np.random.default_rng([config.seed, progress.iteration, 3, progress.step])
        loss, figures = self._objective.next_token(rng)
        if rollouts is not None and batch_P is not None:
            preference, preference_figures = self._objective.preference(rollouts, batch_P)
            loss = loss + config.preference_weight * preference
            figures |= preference_figures
        if not loss.isfinite():
            raise ValueError(f"the loss of step {num_done} is {float(loss.detach())}: lower align.learning_rate")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), config.max_gradient_norm, error_if_nonfinite=True)
        self._optimizer.step()
        return {"loss": float(loss.detach()), **figures}

    def _drift(self, rollouts: Rollouts) -> float:
        """Mean log ratio of reference to policy on candidates at random, in nats a slate.

        With candidates sampled at temperature 1 it estimates KL(reference || policy).
        """
        policy_P1 = self._objective.logprobs(rollouts.example_P, rollouts.drawn_row_PK[:, None])
        return float((rollouts.drawn_reference_P - policy_P1[:, 0]).mean())

    def _end_iteration(self, figures: dict[str, float], bar: Progress) -> None:
        progress = self.progress
        now, start = self._meter.measure(), progress.start_measurement
        # A control shows what so many steps make of the model, whatever the scorer thinks of it.
        kept = self.config.control != "none" or is_kept(self.config, now, progress.best_measurement, start)
        progress.iteration += 1
        progress.step = 0
        progress.sums = {}
        if kept:
            progress.best = asdict(now)
            progress.kept_iteration = progress.iteration
            save_weights(self.out / WEIGHTS, self.generator)
        with (self.out / METRICS).open("a") as file:
            file.write(json.dumps(_row(progress.iteration, now, is_kept=kept) | figures) + "\n")
        self._save()
        bar.say(
            f"  iteration {progress.iteration}: reward {now.reward:.4f} (start {start.reward:.4f}), NDCG@10 "
            f"{now.ndcg_10:.4f} (start {start.ndcg_10:.4f}), {'kept' if kept else 'not kept'}"
        )

    def _save(self) -> None:
        save_align_checkpoint(self.out / CHECKPOINT, self.generator, self._optimizer, self.progress)

    def _ran_out_of_patience(self) -> bool:
        waited = self.progress.iteration - self.progress.kept_iteration
        return self.config.control == "none" and 0 < self.config.patience <= waited

    def _drop_later_metrics(self) -> None:
        """Forgets rows of iterations that the checkpoint has not reached: they will be run again."""
        file = self.out / METRICS
        rows = file.read_text().splitlines(keepends=True)
        file.write_text("".join(rows[: self.progress.iteration + 1]))


def _row(iteration: int, now: Measurement, *, is_kept: bool) -> dict[str, float | bool | None]:
    return {"iteration": iteration, "kept": is_kept, **{f"valid_{name}": value for name, value in asdict(now).items()}}
