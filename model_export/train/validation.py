"""What is measured after each epoch: loss and item-level NDCG on validation examples."""

from dataclasses import dataclass

import numpy as np
import torch

from model_export.data.examples import Examples
from model_export.data.prepared import PreparedData
from model_export.model.generator import Generator, HistoryBatch
from model_export.search.eager import BeamSearch
from model_export.train.batches import Collator, in_batches
from model_export.train.catalog import TrainingCatalog
from model_export.train.config import TrainConfig
from model_export.train.objective import Objective

_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Figures of one epoch."""

    loss: float
    """Mean cross-entropy of a code."""
    recall_10: float
    """Share of examples whose first target item is among the ten best first items."""
    ndcg_10: float
    """Mean of 1 / log2(1 + rank) where the rank is at most ten."""
    new_user_recall_10: float
    """Share of the same first target items that are among the ten best for a user without any history: what the model
    offers to new users, judged by what old ones took next. Training on emptied histories brings it near the recall of
    the ten most popular items."""


class Validator:
    """Decodes the same sample of validation examples each time."""

    def __init__(
        self, config: TrainConfig, prepared: PreparedData, catalog: TrainingCatalog, collator: Collator
    ) -> None:
        examples = prepared.examples("valid")
        if len(examples) > config.num_valid_examples:
            rng = np.random.default_rng(config.seed)
            examples = examples[np.sort(rng.choice(len(examples), config.num_valid_examples, replace=False))]
        self._examples = examples
        self._beam_width = config.valid_beam_width
        self._catalog = catalog
        self._collator = collator
        self._excludes = prepared.meta["repeat_policy"] == "exclude"

    def __len__(self) -> int:
        return len(self._examples)

    @torch.no_grad()
    def measure(self, generator: Generator, objective: Objective) -> Validation:
        """Teacher-forced loss, and the rank of the first target item in a beam of first items."""
        generator.eval()
        search = BeamSearch(generator, self._catalog.snapshot)
        loss_sum, num_codes, ranks, targets = 0.0, 0, [], []
        for examples in in_batches(self._examples, _BATCH):
            losses = objective.losses(generator, self._collator.history(examples), examples)
            loss_sum += float(losses.loss_NJL.sum())
            num_codes += int(losses.is_target_NJ.sum()) * generator.spec.num_levels
            targets.append(self._collator.targets(examples)[0][:, 0])
            ranks.append(self._ranks(search, examples, targets[-1]))
        best_for_new_W = search.decode(_no_history(generator), beam_width=self._beam_width, num_items=1).item_rows_BWK
        found_new_E = torch.isin(torch.cat(targets), best_for_new_W[0, :10, 0])
        generator.train()
        rank_E = torch.cat(ranks)
        found_E = rank_E < 10
        gain_E = torch.where(found_E, 1 / torch.log2(rank_E.float() + 2), 0.0)
        return Validation(
            loss=loss_sum / max(num_codes, 1),
            recall_10=float(found_E.float().mean()),
            ndcg_10=float(gain_E.mean()),
            new_user_recall_10=float(found_new_E.float().mean()),
        )

    def _ranks(self, search: BeamSearch, examples: Examples, target_B: torch.Tensor) -> torch.Tensor:
        slates = search.decode(
            self._collator.history(examples),
            beam_width=self._beam_width,
            num_items=1,
            excluded_rows_BX=self._collator.history_rows(examples) if self._excludes else None,
        )
        is_target_BW = slates.item_rows_BWK[:, :, 0] == target_B.unsqueeze(1)
        return torch.where(is_target_BW.any(1), is_target_BW.to(torch.int8).argmax(1), self._beam_width)


def _no_history(generator: Generator) -> HistoryBatch:
    """One user without events."""
    device, num_levels = generator.start_D.device, generator.spec.num_levels
    return HistoryBatch(
        codes_BTL=torch.zeros(1, 1, num_levels, dtype=torch.int32, device=device),
        actions_BT=torch.zeros(1, 1, dtype=torch.int32, device=device),
        ages_BT=torch.zeros(1, 1, dtype=torch.int32, device=device),
        values_BT=torch.full((1, 1), torch.nan, device=device),
        lengths_B=torch.zeros(1, dtype=torch.int32, device=device),
        rows_BT=torch.full((1, 1), -1, dtype=torch.int32, device=device),
    )
