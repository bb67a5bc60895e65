"""Whether the exported graph writes what the trained model writes.

Legend: B requests, W beams, K slate size, L levels, T history length.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model_export.data.examples import Examples
from model_export.model.generator import HistoryBatch
from model_export.search.eager import BeamSearch, Slates
from model_export.train.batches import Collator
from model_export.train.catalog import TrainingCatalog
from service.bundle.manifest import Choice
from service.inference.choice import ranked_beams
from service.inference.golden import MARGIN_IN_TOLERANCES, GoldenCase
from service.inference.runner import Batch, Decoded


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the graph strays from the model."""

    num_requests: int
    max_logprob_difference: float
    """Over the codes of all best slates that are the same in both."""
    num_identical: int
    """Slates that would be answered and are the same."""
    num_decided: int
    """Best slates that lead the second by more than ten tolerances: these must be the same."""
    num_decided_but_different: int
    tolerance: float
    min_identical_share: float = 0.0
    """Of the best slates: a wide tolerance leaves next to none decided, so that these alone would prove nothing."""
    reward_difference: float = 0.0
    """Of an item's reward, over the beams that are the same in both; the 99th percentile, because the reward model puts
    cosines into buckets, and one on an edge falls to either side."""
    reward_tolerance: float = math.inf

    @property
    def identical_share(self) -> float:
        """Of the best slates."""
        return self.num_identical / self.num_requests

    @property
    def holds(self) -> bool:
        """Whether the graph may be shipped."""
        return (
            self.max_logprob_difference <= self.tolerance
            and self.num_decided_but_different == 0
            and self.identical_share >= self.min_identical_share
            and self.reward_difference <= self.reward_tolerance
        )


def compare(
    slates: Slates,
    decoded: Decoded,
    tolerance: float,
    min_identical_share: float = 0.0,
    choice: Choice = "score",
    reward_tolerance: float = math.inf,
) -> Parity:
    """Compares the best slate of each request, the one that would be answered, and the rewards of all."""
    rows_BK = slates.item_rows_BWK[:, 0].numpy()
    same_B = (rows_BK == decoded.item_rows_BWK[:, 0]).all(1)
    difference_B = np.abs(slates.level_logprobs_BWKL[:, 0].numpy() - decoded.level_logprobs_BWKL[:, 0]).max((1, 2))
    decided_B = margins(slates) > MARGIN_IN_TOLERANCES * tolerance
    return Parity(
        num_requests=len(same_B),
        max_logprob_difference=float(difference_B[same_B].max(initial=0.0)),
        num_identical=_num_answered_alike(slates, decoded, choice),
        num_decided=int(decided_B.sum()),
        num_decided_but_different=int((decided_B & ~same_B).sum()),
        tolerance=tolerance,
        min_identical_share=min_identical_share,
        reward_difference=_reward_difference(slates, decoded),
        reward_tolerance=reward_tolerance,
    )


def _num_answered_alike(slates: Slates, decoded: Decoded, choice: Choice) -> int:
    pairs = (
        (answered_beam(slates, request, choice)[0], answered_beam(decoded, request, choice)[0])
        for request in range(len(decoded.scores_BW))
    )
    return sum(bool((expected_K == found_K).all()) for expected_K, found_K in pairs)


def answered_beam(decoded: Decoded | Slates, request: int, choice: Choice) -> tuple[npt.NDArray[np.int32], float]:
    """Rows [K] and score of the slate that would be answered."""
    beams = (as_decoded(decoded) if isinstance(decoded, Slates) else decoded).of_request(request)
    best = ranked_beams(beams, beams.item_rows_WK.shape[1], choice)[0]
    return beams.item_rows_WK[best], float(beams.scores_W[best])


def _reward_difference(slates: Slates, decoded: Decoded) -> float:
    if slates.item_rewards_BWK is None:
        return 0.0
    if decoded.item_rewards_BWK is None:
        return math.inf
    same_BW = (slates.item_rows_BWK.numpy() == decoded.item_rows_BWK).all(2)
    difference = np.abs(slates.item_rewards_BWK.numpy() - decoded.item_rewards_BWK)[same_BW]
    return float(np.quantile(difference, 0.99)) if difference.size else 0.0


def as_decoded(slates: Slates) -> Decoded:
    """The model's own slates, as a runner would return them."""
    return Decoded(
        item_rows_BWK=slates.item_rows_BWK.numpy(),
        item_valid_BWK=slates.item_valid_BWK.numpy(),
        level_logprobs_BWKL=slates.level_logprobs_BWKL.numpy(),
        scores_BW=slates.scores_BW.numpy(),
        item_rewards_BWK=None if slates.item_rewards_BWK is None else slates.item_rewards_BWK.numpy(),
    )


def margins(slates: Slates) -> npt.NDArray[np.float32]:
    """How far each best beam leads the second [B]; infinite where there is no second."""
    scores_BW: npt.NDArray[np.float32] = slates.scores_BW.numpy()
    if scores_BW.shape[1] == 1:
        return np.full(len(scores_BW), np.inf, dtype=np.float32)
    return scores_BW[:, 0] - scores_BW[:, 1]


def decode_requests(
    search: BeamSearch,
    catalog: TrainingCatalog,
    collator: Collator,
    examples: Examples,
    beam_width: int,
) -> tuple[HistoryBatch, torch.Tensor, Slates, Batch]:
    """Decodes requests with the model, histories excluded: histories, excluded rows, slates, and all as a batch."""
    history, excluded_BX = collator.history(examples), collator.history_rows(examples)
    slates = search.decode(history, beam_width=beam_width, excluded_rows_BX=excluded_BX)
    batch = Batch(
        history_codes_BTL=history.codes_BTL.numpy(),
        history_rows_BT=_rows(history).numpy(),
        history_actions_BT=history.actions_BT.numpy(),
        history_ages_BT=history.ages_BT.numpy(),
        history_values_BT=history.values_BT.numpy(),
        history_lengths_B=history.lengths_B.numpy(),
        excluded_rows_BX=excluded_BX.numpy(),
        filter_slots_B=np.zeros(len(examples), dtype=np.int32),
        allowed_cumsum_FN=catalog.snapshot.allowed_cumsum()[None],
        group_limits_B=np.zeros(len(examples), dtype=np.int32),
        diversities_B=np.zeros(len(examples), dtype=np.float32),
        beam_width=beam_width,
        catalog=catalog.snapshot,
    )
    return history, excluded_BX, slates, batch


def golden_cases(
    history: HistoryBatch, excluded_BX: torch.Tensor, slates: Slates, beam_width: int, count: int
) -> list[GoldenCase]:
    """The first requests with the model's own answers."""
    margin_B, rewards_BWK = margins(slates), slates.item_rewards_BWK
    cases = []
    for place in range(min(count, len(margin_B))):
        length = int(history.lengths_B[place])
        values = history.values_BT[place, :length].tolist()
        excluded = excluded_BX[place]
        cases.append(
            GoldenCase(
                history_codes=history.codes_BTL[place, :length].tolist(),
                history_rows=_rows(history)[place, :length].tolist(),
                history_actions=history.actions_BT[place, :length].tolist(),
                history_ages=history.ages_BT[place, :length].tolist(),
                history_values=[None if np.isnan(value) else value for value in values],
                excluded_rows=excluded[excluded >= 0].tolist(),
                beam_width=beam_width,
                item_rows=slates.item_rows_BWK[place, 0].tolist(),
                level_logprobs=slates.level_logprobs_BWKL[place, 0].tolist(),
                score=float(slates.scores_BW[place, 0]),
                item_rewards=None if rewards_BWK is None else rewards_BWK[place, 0].tolist(),
                margin=min(float(margin_B[place]), 1e30),
            )
        )
    return cases


def _rows(history: HistoryBatch) -> torch.Tensor:
    assert history.rows_BT is not None
    return history.rows_BT
