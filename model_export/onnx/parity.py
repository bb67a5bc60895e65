"""Whether the exported graph writes what the trained model writes.

Legend: B requests, W beams, K slate size, L levels, T history length.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model_export.data import Examples
from model_export.model import HistoryBatch
from model_export.search import BeamSearch, Slates
from model_export.train import TrainingCatalog
from model_export.train.batches import Collator
from service.inference.golden import MARGIN_IN_TOLERANCES, GoldenCase
from service.inference.runner import Batch, Decoded, Runner


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the graph strays from the model."""

    num_requests: int
    max_logprob_difference: float
    """Over the codes of all best slates that are the same in both."""
    num_identical: int
    """Best slates that are the same."""
    num_decided: int
    """Best slates that lead the second by more than ten tolerances: these must be the same."""
    num_decided_but_different: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the graph may be shipped."""
        return self.max_logprob_difference <= self.tolerance and self.num_decided_but_different == 0


def compare(slates: Slates, decoded: Decoded, tolerance: float) -> Parity:
    """Compares the best slate of each request."""
    rows_BK = slates.item_rows_BWK[:, 0].numpy()
    same_B = (rows_BK == decoded.item_rows_BWK[:, 0]).all(1)
    difference_B = np.abs(slates.level_logprobs_BWKL[:, 0].numpy() - decoded.level_logprobs_BWKL[:, 0]).max((1, 2))
    decided_B = margins(slates) > MARGIN_IN_TOLERANCES * tolerance
    return Parity(
        num_requests=len(same_B),
        max_logprob_difference=float(difference_B[same_B].max(initial=0.0)),
        num_identical=int(same_B.sum()),
        num_decided=int(decided_B.sum()),
        num_decided_but_different=int((decided_B & ~same_B).sum()),
        tolerance=tolerance,
    )


def margins(slates: Slates) -> npt.NDArray[np.float32]:
    """How far each best beam leads the second [B]; infinite where there is no second."""
    scores_BW: npt.NDArray[np.float32] = slates.scores_BW.numpy()
    if scores_BW.shape[1] == 1:
        return np.full(len(scores_BW), np.inf, dtype=np.float32)
    return scores_BW[:, 0] - scores_BW[:, 1]


def run_both(
    runner: Runner,
    search: BeamSearch,
    catalog: TrainingCatalog,
    collator: Collator,
    examples: Examples,
    beam_width: int,
) -> tuple[HistoryBatch, torch.Tensor, Slates, Decoded]:
    """Decodes the same requests with the model and with the graph, histories excluded; also returns the inputs."""
    history, excluded_BX = collator.history(examples), collator.history_rows(examples)
    slates = search.decode(history, beam_width=beam_width, excluded_rows_BX=excluded_BX)
    batch = Batch(
        history_codes_BTL=history.codes_BTL.numpy(),
        history_rows_BT=_rows(history).numpy(),
        history_actions_BT=history.actions_BT.numpy(),
        history_times_BT=history.times_BT.numpy(),
        history_values_BT=history.values_BT.numpy(),
        history_lengths_B=history.lengths_B.numpy(),
        now_B=history.now_B.numpy(),
        excluded_rows_BX=excluded_BX.numpy(),
        filter_slots_B=np.zeros(len(examples), dtype=np.int32),
        allowed_cumsum_FN=catalog.snapshot.allowed_cumsum()[None],
        beam_width=beam_width,
        catalog=catalog.snapshot,
    )
    return history, excluded_BX, slates, runner.run(batch)


def golden_cases(
    history: HistoryBatch, excluded_BX: torch.Tensor, slates: Slates, beam_width: int, count: int
) -> list[GoldenCase]:
    """The first requests with the model's own answers."""
    margin_B = margins(slates)
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
                history_times=history.times_BT[place, :length].tolist(),
                history_values=[None if np.isnan(value) else value for value in values],
                now=int(history.now_B[place]),
                excluded_rows=excluded[excluded >= 0].tolist(),
                beam_width=beam_width,
                item_rows=slates.item_rows_BWK[place, 0].tolist(),
                level_logprobs=slates.level_logprobs_BWKL[place, 0].tolist(),
                score=float(slates.scores_BW[place, 0]),
                margin=min(float(margin_B[place]), 1e30),
            )
        )
    return cases


def _rows(history: HistoryBatch) -> torch.Tensor:
    assert history.rows_BT is not None
    return history.rows_BT
