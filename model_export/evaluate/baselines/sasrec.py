"""SASRec with full-softmax cross-entropy, trained here on the prepared training events.

Shapes: B batch, T length, E examples, N items, D width, P real positions, S training sequences; item N pads.
"""

import copy
import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.evaluate.baselines.popularity import next_item_counts
from model_export.evaluate.baselines.sasrec_config import SasRecConfig
from model_export.evaluate.baselines.sasrec_model import SasRecModel
from model_export.evaluate.baselines.scoring import Scores, ScoringRecommender
from model_export.evaluate.metrics import ndcg_at, target_ranks
from model_export.evaluate.sequences import Int, first_targets, histories

Features = npt.NDArray[np.floating]


class SasRec(ScoringRecommender):
    """The strongest plain sequential baseline. Construct it, `fit` it, compare it.

    Every position of every training sequence is a target. The weights of the best validation NDCG@10 are kept. An
    empty history gets the popular list. `feature_ND`: item features for `config.text`; `ValueError` where they are
    missing, or not one row per item. On one machine and number of threads the result depends on the seed alone.
    """

    def __init__(
        self,
        prepared: PreparedData,
        config: SasRecConfig | None = None,
        *,
        feature_ND: Features | None = None,
        name: str = "sasrec",
    ) -> None:
        super().__init__(prepared)
        self.name = name
        self.config = config or SasRecConfig()
        self.epochs: list[dict[str, float]] = []
        self.best_epoch = 0
        """The epoch, from 1, whose weights `fit` kept."""
        self._popularity_N = next_item_counts(prepared)
        text_ND = None
        if self.config.text != "none":
            if feature_ND is None or len(feature_ND) != prepared.num_items:
                raise ValueError(
                    f"text={self.config.text!r} needs a feature row for each of {prepared.num_items} items"
                )
            text_ND = torch.from_numpy(np.ascontiguousarray(feature_ND, dtype=np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.model = SasRecModel(self.config, prepared.num_items, text_ND)

    def fit(self, console: Console | None = None, *, num_epochs: int | None = None) -> "SasRec":
        """Train until validation NDCG@10 stops rising; returns itself. Keeps a row per epoch in `epochs`.

        Without validation examples the training loss decides. With `num_epochs` training runs for just as many and the
        last weights are kept, as a refit on training and validation data needs it.
        """
        console = console or Console(stderr=True)
        valid = self._valid_examples()
        best_score, best_state = -math.inf, copy.deepcopy(self.model.state_dict())
        with torch.random.fork_rng(devices=[]), Progress(console=console, disable=not console.is_terminal) as progress:
            torch.manual_seed(self.config.seed)
            trainer = _Trainer(self.model, self.config, self.prepared)
            num_most = num_epochs or self.config.max_epochs
            task = progress.add_task(f"training {self.name}", total=num_most)
            for epoch in range(1, num_most + 1):
                row = {"epoch": epoch, "loss": trainer.run_epoch()}
                if len(valid):
                    row["valid_ndcg@10"] = self._valid_ndcg(valid)
                self.epochs.append(row)
                line = f"{self.name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items())
                progress.update(task, advance=1, description=line)
                if not console.is_terminal and (epoch == 1 or epoch % 10 == 0):
                    console.print(line)
                score = float(epoch) if num_epochs else row.get("valid_ndcg@10", -row["loss"])
                if score > best_score:
                    best_score, self.best_epoch = score, epoch
                    best_state = copy.deepcopy(self.model.state_dict())
                elif epoch - self.best_epoch >= self.config.patience:
                    break
        self.model.load_state_dict(best_state)
        console.print(
            f"{self.name}: kept epoch {self.best_epoch} of {len(self.epochs)}, {self.num_parameters:,} parameters"
        )
        return self

    def save(self, path: Path) -> None:
        """Writes the weights that `fit` kept, and its epochs, in one rename."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        torch.save({"model": self.model.state_dict(), "best_epoch": self.best_epoch, "epochs": self.epochs}, partial)
        partial.replace(path)

    def load(self, path: Path) -> "SasRec":
        """Takes what `save` wrote of a model with the same data and configuration; returns itself."""
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.best_epoch, self.epochs = saved["best_epoch"], saved["epochs"]
        return self

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @torch.no_grad()
    def scores(self, examples: Examples) -> Scores:
        """Logits `[E, N]`."""
        self.model.eval()
        history_ET = histories(self.prepared, examples, max_length=self.config.max_length)
        length_E = (history_ET >= 0).sum(axis=1)
        score_EN = np.empty((len(examples), self.prepared.num_items), dtype=np.float32)
        vectors = self.model.item_vectors()
        for start in range(0, len(examples), 256):
            rows = slice(start, start + 256)
            width = max(int(length_E[rows].max(initial=0)), 1)
            item_BT = _padded_input(history_ET[rows, :width], width, self.prepared.num_items)
            hidden_BTD = self.model(item_BT, vectors)
            last_B = torch.from_numpy(np.maximum(length_E[rows] - 1, 0))
            hidden_BD = hidden_BTD[torch.arange(len(last_B)), last_B]
            score_EN[rows] = self.model.logits(hidden_BD, vectors).numpy()
        score_EN[length_E == 0] = self._popularity_N
        return score_EN

    def _valid_examples(self) -> Examples:
        valid = self.prepared.examples("valid")
        if len(valid) <= self.config.max_valid_examples:
            return valid
        rng = np.random.default_rng(self.config.seed)
        return valid[np.sort(rng.choice(len(valid), self.config.max_valid_examples, replace=False))]

    def _valid_ndcg(self, valid: Examples) -> float:
        rank_E = target_ranks(self.rank(valid, 10), first_targets(self.prepared, valid))
        return float(ndcg_at(rank_E, 10).mean())


class _Trainer:
    """Batches and optimizer steps; one epoch reads every training sequence once."""

    def __init__(self, model: SasRecModel, config: SasRecConfig, prepared: PreparedData) -> None:
        self.model, self.config, self.num_items = model, config, prepared.num_items
        self.rng = np.random.default_rng(config.seed)
        is_train_E = prepared.train_events()
        self.item_T = prepared.item_E[is_train_E].astype(np.int64)
        segment_T = prepared.segment_E[is_train_E]
        bounds = np.flatnonzero(np.diff(segment_T)) + 1
        self.start_S = np.concatenate([[0], bounds]) if len(segment_T) else np.zeros(0, dtype=np.int64)
        self.end_S = np.concatenate([bounds, [len(segment_T)]]) if len(segment_T) else np.zeros(0, dtype=np.int64)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )
        warmup = max(config.warmup_steps, 1)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / warmup))

    def run_epoch(self) -> float:
        """One pass over all pieces in random order; the mean loss of a target."""
        self.model.train()
        total, num_targets = 0.0, 0
        for pieces in self._batches():
            loss, num_positions = self._step(pieces)
            total, num_targets = total + loss * num_positions, num_targets + num_positions
        return total / max(num_targets, 1)

    def _batches(self) -> list[Int]:
        """Random batches of about `batch_targets` targets, of pieces of like length, so that little is padding."""
        pieces, size = self._pieces(), self.config.batch_targets
        if len(pieces) == 0:
            return []
        self.rng.shuffle(pieces)
        length = pieces[:, 1] - pieces[:, 0]
        pool = np.cumsum(length) // (16 * size)
        pieces = pieces[np.lexsort((length, pool))]
        batch = np.cumsum(pieces[:, 1] - pieces[:, 0]) // size
        batches = np.split(pieces, np.flatnonzero(np.diff(batch)) + 1)
        return [batches[place] for place in self.rng.permutation(len(batches))]

    def _pieces(self) -> Int:
        """Every sequence cut into pieces of at most `max_length` inputs at a random offset, `[pieces, 2]`.

        The last item of a piece is a target only, and opens the next piece as an input. So each target counts once.
        """
        length = self.config.max_length
        pieces: list[tuple[int, int]] = []
        for start, end in zip(self.start_S.tolist(), self.end_S.tolist(), strict=True):
            if end - start < 2:
                continue
            stop = end - 1 if end - 1 - start <= length else start + int(self.rng.integers(1, length + 1))
            cuts = [start, *range(stop, end - 1, length), end - 1]
            pieces += itertools.pairwise(cuts)
        return np.array(pieces, dtype=np.int64).reshape(-1, 2)

    def _step(self, pieces: Int) -> tuple[float, int]:
        length_B = pieces[:, 1] - pieces[:, 0]
        width = int(length_B.max())
        position_T = np.arange(width)
        is_real_BT = position_T < length_B[:, None]
        index_BT = np.where(is_real_BT, pieces[:, :1] + position_T, 0)
        item_BT = _padded_input(np.where(is_real_BT, self.item_T[index_BT], -1), width, self.num_items)
        target_P = torch.from_numpy(self.item_T[index_BT[is_real_BT] + 1])
        vectors = self.model.item_vectors()
        hidden_BTD = self.model(item_BT, vectors)
        loss = F.cross_entropy(self.model.logits(hidden_BTD[torch.from_numpy(is_real_BT)], vectors), target_P)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach()), len(target_P)


def _padded_input(item_BT: npt.NDArray[Any], width: int, num_items: int) -> Tensor:
    """Item indexes with the padding index behind, at least one column wide."""
    padded_BT = np.full((len(item_BT), width), num_items, dtype=np.int64)
    padded_BT[:, : item_BT.shape[1]] = np.where(item_BT >= 0, item_BT, num_items)
    return torch.from_numpy(padded_BT)
