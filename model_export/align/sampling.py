"""Slates drawn at random from the generator's own distribution over legal slates.

The beam's candidates of one user are near copies of each other; draws differ more, and so do their rewards.

Legend: B requests, W slates of each, U slates after a step, C children of a node.
"""

import torch
from torch import Tensor

from model_export.model import Generator
from model_export.search import BeamSearch
from model_export.search.eager import EagerPieces
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

    def run(self, piece: str, *values: Tensor) -> tuple[Tensor, ...]:
        """Runs one piece; slates that are equal as sets stay, because they were drawn."""
        match piece:
            case "select":
                return self._draw(*values)
            case "widen":
                return values
            case "distinct":
                return values[:4]
            case _:
                return super().run(piece, *values)

    def _draw(
        self, total_BWC: Tensor, logprob_BWC: Tensor, first_BW: Tensor, beams_U: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `model_export.search.pieces.Select`; the first draw makes U slates of the one empty slate."""
        num_requests, num_slates = first_BW.shape
        parent_BU = torch.arange(len(beams_U), device=first_BW.device).clamp(max=num_slates - 1).repeat(num_requests, 1)
        place_BUC = parent_BU.unsqueeze(2).expand(-1, -1, total_BWC.shape[2])
        total_BUC = total_BWC.gather(1, place_BUC)
        # A slate's children share its score, which the softmax takes out again; what is illegal has probability 0.
        share_BUC = (total_BUC / self._temperature).softmax(-1)
        drawn_BU1 = torch.multinomial(share_BUC.flatten(0, 1), 1, generator=self.noise).view(num_requests, -1, 1)
        child_BU = first_BW.gather(1, parent_BU) + drawn_BU1.squeeze(2)
        score_BU = total_BUC.gather(2, drawn_BU1).squeeze(2)
        logprob_BU = logprob_BWC.gather(1, place_BUC).gather(2, drawn_BU1).squeeze(2)
        return score_BU, parent_BU, child_BU, logprob_BU
