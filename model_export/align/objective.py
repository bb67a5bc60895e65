"""What one step of alignment minimises: next-token prediction, and a preference loss over groups of slates.

Legend: P groups of a batch, S slates of a group, B examples, K slate size, L levels.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_export.align.config import AlignConfig
from model_export.align.losses import (
    CHOSEN,
    SlateGroups,
    best_and_worst,
    preference_figures,
    preference_loss,
    slate_logprobs,
)
from model_export.align.rollouts import Rollouts
from model_export.data.prepared import PreparedData
from model_export.model.losses import next_code_loss
from model_export.model.trie import TriePaths
from model_export.train.batches import Collator, training_examples
from model_export.train.precision import autocast
from model_export.train.stage import TrainedGenerator

_BATCH = 64


class AlignObjective:
    """The losses of one generator on the training examples of one data set."""

    def __init__(self, config: AlignConfig, trained: TrainedGenerator, prepared: PreparedData) -> None:
        self._config = config
        self._generator = trained.generator
        self._preference_loss = preference_loss(config)
        self._train = prepared.examples("train")
        self._supervised = training_examples(prepared, config.min_target_items)
        self._device = trained.generator.start_D.device
        self._collator = Collator(prepared, trained.catalog, trained.generator.spec, self._device)
        self._paths = TriePaths.of(trained.catalog.snapshot, self._device)
        self._sids_NL = torch.from_numpy(trained.catalog.snapshot.sids_NL).long().to(self._device)

    def next_token(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of a code of the true targets, with dropout, as in training."""
        size = min(self._config.supervised_batch_size, len(self._supervised))
        examples = self._supervised[rng.choice(len(self._supervised), size, replace=False)]
        row_BK, codes_BKL = self._collator.targets(examples)
        self._generator.train()
        with autocast(self._config.precision, self._device):
            logits = self._generator(self._collator.history(examples), codes_BKL)
        loss_BKL = next_code_loss(logits, row_BK, codes_BKL, self._paths, self._generator.config.score_mode)
        loss = loss_BKL.sum() / ((row_BK >= 0).sum() * loss_BKL.shape[2])
        return loss, {"ntp_loss": float(loss.detach())}

    def preference(self, rollouts: Rollouts, batch_P: npt.NDArray[np.int64]) -> tuple[Tensor, dict[str, float]]:
        """Mean of the preference loss, and `chosen_weight` times the best slates' loss per code."""
        row_PSK = rollouts.row_PSK[batch_P]
        groups = SlateGroups(
            policy_PS=self._logprobs(rollouts.example_P[batch_P], row_PSK),
            reference_PS=torch.from_numpy(rollouts.reference_PS[batch_P]).to(self._device),
            reward_PS=torch.from_numpy(rollouts.reward_PS[batch_P]).to(self._device),
        )
        preference = self._preference_loss(groups).mean()
        loss = preference
        if self._config.chosen_weight:
            best_P = best_and_worst(groups.reward_PS)[:, CHOSEN]
            num_items = int((row_PSK[np.arange(len(row_PSK)), best_P.cpu().numpy()] >= 0).sum())
            logprob = groups.policy_PS.gather(1, best_P.unsqueeze(1)).sum()
            loss = preference - self._config.chosen_weight * logprob / (num_items * self._sids_NL.shape[1])
        return loss, {"preference_loss": float(preference.detach()), **preference_figures(groups)}

    @torch.no_grad()
    def logprobs(self, example_P: npt.NDArray[np.int64], row_PSK: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Logprobs [P, S] of the slates under the weights as they are now."""
        parts = [
            self._logprobs(example_P[place : place + _BATCH], row_PSK[place : place + _BATCH]).cpu().numpy()
            for place in range(0, len(example_P), _BATCH)
        ]
        return np.concatenate(parts)

    def _logprobs(self, example_P: npt.NDArray[np.int64], row_PSK: npt.NDArray[np.int32]) -> Tensor:
        # Without dropout, so that the margin over the reference starts at zero.
        self._generator.eval()
        history = self._collator.history(self._train[example_P])
        rows = torch.from_numpy(row_PSK.astype(np.int64)).to(self._device)
        with autocast(self._config.precision, self._device):
            return slate_logprobs(self._generator, history, rows, self._sids_NL, self._paths)
