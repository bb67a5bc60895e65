"""Slates drawn at random from the generator's own distribution over legal slates.

The beam's candidates of one user are near copies of each other; draws differ more, and so do their rewards.

Legend: B requests, W slates of each, U slates after a step, C candidates of a slate, V codes of a level.
"""

import torch
from torch import Tensor

from model_export.model.generator import Generator
from model_export.search.candidates import DEAD
from model_export.search.eager import BeamSearch, EagerPieces
from service.catalog import CatalogSnapshot


class SlateSampler(BeamSearch):
    """Decodes as the beam search does, but every slate draws its next code instead of competing for the best.

    `decode` returns `beam_width` independent slates per request, in no order; the same slate may come twice. A code is
    drawn from the softmax of its logits / temperature over the codes that are legal at that point, so slates are
    legal like the beam's. Scores are the usual sums of logprobs, whatever the temperature.
    """

    def __init__(self, generator: Generator, catalog: CatalogSnapshot, *, temperature: float) -> None:
        super().__init__(generator, catalog)
        self._pieces: SamplingPieces = SamplingPieces(generator, catalog.trie.max_branch, temperature)

    def reseed(self, seed: int) -> None:
        """From here on the draws are those of this seed."""
        self._pieces.noise.manual_seed(seed)


class SamplingPieces(EagerPieces):
    """The pieces of the search, with a draw in place of the choice."""

    def __init__(self, generator: Generator, max_branch: tuple[int, ...], temperature: float) -> None:
        super().__init__(generator, max_branch)
        self.noise = torch.Generator(device=generator.start_D.device)
        self._temperature = temperature

    def run(self, piece: str, *values: Tensor, of: int = 0) -> tuple[Tensor, ...]:
        """Runs one piece; slates that are equal as sets stay, because they were drawn."""
        match piece:
            case "select_root":
                total, logprob, child_V, base, kept, node_BW, beams, *_ = values
                # Codes that lead to no item would only move the draws: a seed means the same at every level.
                place_C = (child_V >= 0).nonzero().flatten()
                total, logprob = total.index_select(2, place_C), logprob.index_select(2, place_C)
                child = child_V[place_C].expand_as(total)
                return self._draw(total, logprob, child, base, kept, node_BW < 0, beams)
            case "select":
                # The first and the last candidate are never children.
                total, logprob, child = (value[:, :, 1:-1] for value in values[:3])
                base, kept, _, beams = values[3:7]
                return self._draw(total, logprob, child, base, kept, torch.zeros_like(base, dtype=torch.bool), beams)
            case "widen":
                return values
            case "distinct":
                return values[:4]
            case _:
                return super().run(piece, *values, of=of)

    def _draw(
        self,
        total_BWC: Tensor,
        logprob_BWC: Tensor,
        child_BWC: Tensor,
        base_BW: Tensor,
        kept_BW: Tensor,
        has_ended_BW: Tensor,
        beams_U: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `model_export.search.choice.Select`; the first draw makes U slates of the one empty slate."""
        num_requests, num_slates = base_BW.shape
        has_ended_BW = has_ended_BW | (total_BWC.amax(2) <= DEAD / 2)
        parent_BU = torch.arange(len(beams_U), device=base_BW.device).clamp(max=num_slates - 1).repeat(num_requests, 1)
        place_BUC = parent_BU.unsqueeze(2).expand(-1, -1, total_BWC.shape[2])
        # What is illegal has probability 0; of a slate that has ended the draw is not used.
        share_BUC = (total_BWC.gather(1, place_BUC) / self._temperature).softmax(-1)
        drawn_BU1 = torch.multinomial(share_BUC.flatten(0, 1), 1, generator=self.noise).view(num_requests, -1, 1)
        total_BU, logprob_BU, child_BU = (
            one.gather(1, place_BUC).gather(2, drawn_BU1).squeeze(2) for one in (total_BWC, logprob_BWC, child_BWC)
        )
        base_BU, kept_BU, has_ended_BU = (one.gather(1, parent_BU) for one in (base_BW, kept_BW, has_ended_BW))
        score_BU = torch.where(has_ended_BU, kept_BU, base_BU + total_BU)
        return (
            score_BU,
            parent_BU,
            torch.where(has_ended_BU, -1, child_BU),
            torch.where(has_ended_BU, 0.0, logprob_BU),
        )
