"""What is measured after each epoch: loss and item-level NDCG on validation examples."""

from dataclasses import dataclass

import numpy as np
import torch

from model_export.data import Examples, PreparedData
from model_export.model import Generator
from model_export.model.losses import TriePaths, next_code_loss
from model_export.search import BeamSearch
from model_export.train.batches import Collator, in_batches
from model_export.train.catalog import TrainingCatalog
from model_export.train.config import TrainConfig

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
    def measure(self, generator: Generator, paths: TriePaths) -> Validation:
        """Teacher-forced loss, and the rank of the first target item in a beam of first items."""
        generator.eval()
        search = BeamSearch(generator, self._catalog.snapshot)
        loss_sum, num_codes, ranks = 0.0, 0, []
        for examples in in_batches(self._examples, _BATCH):
            history = self._collator.history(examples)
            rows_BK, codes_BKL = self._collator.targets(examples)
            logits = generator(history, codes_BKL)
            loss = next_code_loss(logits, rows_BK, codes_BKL, paths, generator.config.score_mode)
            loss_sum += float(loss.sum())
            num_codes += int((rows_BK >= 0).sum()) * generator.spec.num_levels
            ranks.append(self._ranks(search, examples, rows_BK[:, 0]))
        generator.train()
        rank_E = torch.cat(ranks)
        found_E = rank_E < 10
        gain_E = torch.where(found_E, 1 / torch.log2(rank_E.float() + 2), 0.0)
        return Validation(
            loss=loss_sum / max(num_codes, 1),
            recall_10=float(found_E.float().mean()),
            ndcg_10=float(gain_E.mean()),
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
