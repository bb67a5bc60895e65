"""Stochastic beam search: slates drawn without replacement from the generator's policy (Kool et al. 2019, 1903.06059).

The policy draws each code from softmax(score / temperature) over the codes that are legal then, filters, exclusions
and caps included; where a cap leaves none the slate ends. phi is a code's logprob under it. Every beam carries its
perturbed score G, Gumbel(phi of all its codes); a child's is Gumbel(phi) given that the largest of the children is the
parent's (their algorithm 1; the stable form is in appendix B). So G of a beam is the largest of all slates that it may
become, and the best W slates by G are W draws without replacement: the first is one draw from the policy.

Of the orders of one set the search keeps the best alone. The beam with the largest G is never the worse order, and its
largest child has the same G: the first draw is exact still. The beams after it are draws without replacement of what is
kept.

The search itself is `model_export.search.driver`'s; only what its pieces choose is replaced.

Legend: B requests, W beams in, U beams out, C children of a node, S words of the noise's state, P codes so far, K slate
size, L levels.
"""

from collections.abc import Mapping
from typing import Generic

import torch
from torch import Tensor, nn

from model_export.model.generator import Generator
from model_export.search.candidates import DEAD, take
from model_export.search.driver import Pieces, Value, run_search
from model_export.search.noise import after_code, gumbel, uniform

SAMPLER_INPUTS = ("temperatures", "seed_words")
"""Further inputs: float32 [B]; int32 [B, 3], digits of the seeds."""
LEVEL_PROPENSITIES = "level_log_propensities"
"""The further output: phi of each code, float32 [B, W, K, L], 0 where there is no item. `scores` are G."""


class CodesOf(nn.Module):
    """The codes of candidates."""

    def forward(self, child_BWC: Tensor, child_code: Tensor) -> Tensor:
        """Any where there is no child."""
        return take(child_code, child_BWC.clamp(min=0))


class Perturb(nn.Module):
    """Turns the candidates' scores into perturbed ones."""

    def forward(
        self,
        total_BWC: Tensor,
        code: Tensor,
        perturbed_BW: Tensor,
        phi_BW: Tensor,
        state_BWS: Tensor,
        temperatures_B: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """From the candidates' totals and the beams' own G and phi to the candidates' G and phi, each [B, W, C].

        `code`: of each candidate, int32, [B, W, C], or [1, 1, V] at the root. G is what is to be added to the beam's.
        """
        legal_BWC = total_BWC > DEAD / 2
        phi_BWC = torch.where(legal_BWC, total_BWC / temperatures_B[:, None, None], DEAD).log_softmax(2)
        noisy_BWC = phi_BWC + gumbel(uniform(state_BWS, code))
        most_BW1 = torch.where(legal_BWC, noisy_BWC, DEAD).amax(2, keepdim=True)
        # The parent's G, on the scale on which phi of the parent is 0.
        bound_BW1 = (perturbed_BW - phi_BW).unsqueeze(2)
        below_BWC = 1 - (noisy_BWC - most_BW1).exp()
        v_BWC = bound_BW1 - noisy_BWC + below_BWC.clamp(min=1e-30).log()
        fall_BWC = v_BWC.clamp(min=0.0) + (1 + (-v_BWC.abs()).exp()).log()
        fall_BWC = torch.where(noisy_BWC >= most_BW1, 0.0, fall_BWC)
        return torch.where(legal_BWC, -fall_BWC, DEAD), phi_BWC


class InheritNoise(nn.Module):
    """Lets every new beam inherit what its parent drew."""

    def forward(
        self,
        parent_BU: Tensor,
        child_BU: Tensor,
        drawn_BU: Tensor,
        phi_BW: Tensor,
        trace_NP: Tensor,
        state_BWS: Tensor,
        child_code: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`drawn_BU`: phi of the new codes. Returns phi so far [B, U], its trace [N, P + 1], states [B, U, S]."""
        parent_BU1 = parent_BU.unsqueeze(2)
        state_BUS = state_BWS.gather(1, parent_BU1.expand(-1, -1, state_BWS.shape[2]))
        trace_BWP = trace_NP.unflatten(0, (parent_BU.shape[0], -1))
        trace_BUP = trace_BWP.gather(1, parent_BU1.expand(-1, -1, trace_BWP.shape[2]))
        trace_BUP = torch.cat([trace_BUP, drawn_BU.unsqueeze(2)], 2)
        code_BU = take(child_code, child_BU.clamp(min=0))
        return phi_BW.gather(1, parent_BU) + drawn_BU, trace_BUP.flatten(0, 1), after_code(state_BUS, code_BU)


class FinishSampled(nn.Module):
    """Brings the beams into the form that a runner returns."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(
        self, perturbed_BW: Tensor, trail_NP: Tensor, trace_NP: Tensor, items_R: Tensor, drawn_NP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As `Finish`, but that scores are G; then phi of every code [B, W, K, L]."""
        num_requests = perturbed_BW.shape[0]
        rows_BWK = trail_NP.index_select(1, items_R[1:]).unflatten(0, (num_requests, -1))
        rows_BWK = torch.where((perturbed_BW > DEAD / 2).unsqueeze(2), rows_BWK, -1)
        valid_BWK = rows_BWK >= 0
        both = [
            torch.where(valid_BWK.unsqueeze(3), _by_item(trace[:, 1:], num_requests, self.num_levels), 0.0)
            for trace in (trace_NP, drawn_NP)
        ]
        return rows_BWK, valid_BWK, both[0], perturbed_BW, both[1]


def _by_item(trace_NP: Tensor, num_requests: int, num_levels: int) -> Tensor:
    trace_BWKL: Tensor = trace_NP.unflatten(1, (-1, num_levels)).unflatten(0, (num_requests, -1))
    return trace_BWKL


class SampledPieces(Generic[Value]):
    """The pieces of the search, with draws in place of the best."""

    def __init__(self, pieces: Pieces[Value], inputs: Mapping[str, Value], num_levels: int) -> None:
        """`inputs`: `SAMPLER_INPUTS`, and `child_code_<level>` of every level."""
        self._pieces = pieces
        self._temperatures, seed_words = (inputs[name] for name in SAMPLER_INPUTS)
        self._child_codes = [inputs[f"child_code_{level}"] for level in range(num_levels)]
        (self._state,) = pieces.run("start_noise", seed_words)
        self._num_codes = 0
        self._perturbed: Value
        self._phi: Value
        self._drawn: Value
        self._drawn_before: Value
        self._level_propensities: Value

    def run(self, piece: str, *values: Value, of: int = 0) -> tuple[Value, ...]:
        """Runs one piece."""
        match piece:
            case "start":
                out = self._pieces.run(piece, *values)
                self._perturbed = self._phi = self._drawn_before = out[1]
                return out
            case "select_root" | "select":
                return self._draw(piece, *values)
            case "distinct":
                *chosen, self._drawn = self._pieces.run("distinct_sampled", *values, self._drawn)
                self._perturbed = chosen[0]
                return tuple(chosen)
            case "advance":
                self._inherit(values[0], values[1])
                return self._pieces.run(piece, *values)
            case "finish":
                given = (*values[:4], self._drawn_before)
                *outputs, self._level_propensities = self._pieces.run("finish_sampled", *given)
                return tuple(outputs)
            case _:
                return self._pieces.run(piece, *values, of=of)

    def parameter(self, name: str, *index: int) -> Value:
        """See `Pieces.parameter`."""
        return self._pieces.parameter(name, *index)

    def level_propensities(self) -> Value:
        """`LEVEL_PROPENSITIES`, once the search has run."""
        return self._level_propensities

    def _draw(
        self, piece: str, total: Value, logprob: Value, child: Value, score: Value, kept: Value, *places: Value
    ) -> tuple[Value, ...]:
        """As the piece, but that scores are G; what ends keeps its own."""
        del score, kept
        if piece == "select_root":
            perturb, codes = "perturb_root", self._pieces.parameter("codes", 0)
        else:
            perturb, (codes,) = "perturb", self._pieces.run("codes_of", child, self._child_code())
        noise = (self._perturbed, self._phi, self._state, self._temperatures)
        change, phi = self._pieces.run(perturb, total, codes, *noise)
        mine = (change, logprob, child, self._perturbed, self._perturbed)
        *chosen, self._drawn = self._pieces.run(_SAMPLED[piece], *mine, *places, phi)
        self._perturbed = chosen[0]
        return tuple(chosen)

    def _inherit(self, parent: Value, child: Value) -> None:
        state = (self._phi, self._drawn_before, self._state, self._child_code())
        self._phi, self._drawn_before, self._state = self._pieces.run(
            "inherit_noise", parent, child, self._drawn, *state
        )
        self._num_codes += 1

    def _child_code(self) -> Value:
        return self._child_codes[self._num_codes % len(self._child_codes)]


_SAMPLED = {"select": "select_sampled", "select_root": "select_sampled_root"}


def run_sampler(
    pieces: Pieces[Value], inputs: Mapping[str, Value], generator: Generator, slate_size: int
) -> dict[str, Value]:
    """Slates drawn without replacement: outputs by name, as of the search and `LEVEL_PROPENSITIES`."""
    sampled = SampledPieces(pieces, inputs, generator.spec.num_levels)
    return run_search(sampled, inputs, generator, slate_size) | {LEVEL_PROPENSITIES: sampled.level_propensities()}
