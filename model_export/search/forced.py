"""Teacher-forced slates: the search with a given item in place of the choice, and what else was close.

Explains a slate: which code was likely at each step, and which other legal codes were. The search itself is
`model_export.search.driver`'s; only what its pieces choose is replaced, so that the logprobs are the generator's.

Legend: B requests, W beams (one), K slate size, L levels, C children of a node, R runner-ups, P logprobs so far.
"""

from typing import Generic

import torch
from torch import Tensor, nn

from model_export.search.candidates import DEAD, take
from model_export.search.driver import Pieces, Value

FORCED_ROWS = "forced_rows"
"""The further input: int32 [B, K], padded with -1."""
RUNNER_UP_OUTPUTS = ("runner_up_codes", "runner_up_logprobs")
"""The further outputs: int32 [B, K, L, R], -1 where fewer codes are legal; float32, DEAD there."""
NUM_RUNNER_UPS = 3


class Force(nn.Module):
    """Takes the candidate that the forced row lies under, and the best of the others that are legal."""

    def forward(
        self,
        total_BWC: Tensor,
        logprob_BWC: Tensor,
        child: Tensor,
        forced_rows_BK: Tensor,
        place_1: Tensor,
        child_code: Tensor,
        child_row: Tensor,
        ranks_R: Tensor,
    ) -> tuple[Tensor, ...]:
        """For the one beam of each request, whose score is always 0.

        `child`: of each candidate, [B, W, C], or [V] at the root; `ranks_R` only gives R. Returns as `Select`, DEAD for
        the logprob of a row that lies under no child; then the codes and logprobs of the runner-ups, each [B, R].
        """
        row_B11 = forced_rows_BK.index_select(1, place_1).unsqueeze(2)
        child_BWC = child + torch.zeros_like(total_BWC, dtype=torch.int32)
        is_child_BWC, known_BWC = child_BWC >= 0, child_BWC.clamp(min=0)
        is_above_BWC = (row_B11 >= take(child_row, known_BWC)) & (row_B11 < take(child_row, known_BWC + 1))
        is_forced_BWC = is_child_BWC & is_above_BWC
        branch_BW1 = is_forced_BWC.to(torch.float32).argmax(2, keepdim=True)
        logprob_BW = logprob_BWC.gather(2, branch_BW1).squeeze(2)
        # Totals say what is legal; they hold penalties, too.
        is_rival_BWC = is_child_BWC & ~is_forced_BWC & (total_BWC > DEAD / 2)
        rival_BC = torch.where(is_rival_BWC, logprob_BWC, DEAD).flatten(1)
        dead_BR = torch.zeros_like(rival_BC[:, :1]) + torch.full_like(ranks_R, DEAD, dtype=torch.float32)
        # A dead place may lie past the candidates.
        logprob_BR, branch_BR = torch.cat([rival_BC, dead_BR], 1).topk(ranks_R.shape[0], dim=1)
        child_BR = known_BWC.flatten(1).gather(1, branch_BR.clamp(max=rival_BC.shape[1] - 1))
        is_dead_BR = logprob_BR <= DEAD / 2
        return (
            torch.zeros_like(logprob_BW),
            torch.zeros_like(logprob_BW, dtype=torch.int64),
            known_BWC.gather(2, branch_BW1).squeeze(2),
            torch.where(is_forced_BWC.any(2), logprob_BW, DEAD),
            torch.where(is_dead_BR, -1, take(child_code, child_BR)),
            torch.where(is_dead_BR, DEAD, logprob_BR),
        )


class FinishForced(nn.Module):
    """Brings the one beam into the form that a runner returns."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(self, forced_rows_BK: Tensor, trace_NP: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns as `Finish`: the forced rows, whether there is one, their level logprobs, and their sum."""
        rows_BWK = forced_rows_BK.unsqueeze(1)
        valid_BWK = rows_BWK >= 0
        # One beam per request: N is B.
        logprob_BWKL = trace_NP[:, 1:].unflatten(1, (-1, self.num_levels)).unsqueeze(1)
        logprob_BWKL = torch.where(valid_BWK.unsqueeze(3), logprob_BWKL, 0.0)
        return rows_BWK, valid_BWK, logprob_BWKL, logprob_BWKL.sum((2, 3))


class RunnerUps(nn.Module):
    """Puts the runner-ups of all steps together."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(self, forced_rows_BK: Tensor, *steps: Tensor) -> tuple[Tensor, Tensor]:
        """`steps`: codes, then logprobs, of every step in order, each [B, R]. Returns as `RUNNER_UP_OUTPUTS`."""
        half = len(steps) // 2
        codes_BKLR, logprobs_BKLR = (
            torch.stack(part, 1).unflatten(1, (-1, self.num_levels)) for part in (steps[:half], steps[half:])
        )
        valid_BK11 = (forced_rows_BK >= 0)[:, :, None, None]
        return torch.where(valid_BK11, codes_BKLR, -1), torch.where(valid_BK11, logprobs_BKLR, DEAD)


class ForcedPieces(Generic[Value]):
    """The pieces of the search, with the forced item in place of the choice; one beam per request."""

    def __init__(self, pieces: Pieces[Value], forced_rows: Value, trie: dict[str, Value], num_levels: int) -> None:
        """`trie`: `child_code_<level>` and `child_row_<level>`."""
        self._pieces = pieces
        self._forced_rows = forced_rows
        self._trie = trie
        self._num_levels = num_levels
        self._codes: list[Value] = []
        self._logprobs: list[Value] = []

    def run(self, piece: str, *values: Value, of: int = 0) -> tuple[Value, ...]:
        """Runs one piece; one beam never repeats another's set."""
        match piece:
            case "select_root":
                return self._force("force_root", *values[:3])
            case "select":
                return self._force("force", *values[:3])
            case "widen":
                return values
            case "distinct":
                return values[:4]
            case "finish":
                return self._pieces.run("finish_forced", self._forced_rows, values[2])
            case _:
                return self._pieces.run(piece, *values, of=of)

    def parameter(self, name: str, *index: int) -> Value:
        """See `Pieces.parameter`."""
        return self._pieces.parameter(name, *index)

    def runner_ups(self) -> dict[str, Value]:
        """`RUNNER_UP_OUTPUTS`, once the search has run."""
        found = self._pieces.run("runner_ups", self._forced_rows, *self._codes, *self._logprobs)
        return dict(zip(RUNNER_UP_OUTPUTS, found, strict=True))

    def _force(self, piece: str, total: Value, logprob: Value, child: Value) -> tuple[Value, ...]:
        position, level = divmod(len(self._codes), self._num_levels)
        *chosen, codes, logprobs = self._pieces.run(
            piece,
            total,
            logprob,
            child,
            self._forced_rows,
            self.parameter("place", position),
            self._trie[f"child_code_{level}"],
            self._trie[f"child_row_{level}"],
            self.parameter("ranks", NUM_RUNNER_UPS),
        )
        self._codes.append(codes)
        self._logprobs.append(logprobs)
        return tuple(chosen)
