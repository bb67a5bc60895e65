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

from model_export.search.candidates import DEAD, take
from model_export.search.driver import Pieces, Value, run_search
from model_export.search.noise import after_code, gumbel, uniform

SAMPLER_INPUTS = ("temperatures", "seed_words")
"""Further inputs: float32 [B]; int32 [B, 3], digits of the seeds."""
LEVEL_PROPENSITIES = "level_log_propensities"
"""The further output: phi of each code, float32 [B, W, K, L], 0 where there is no item. `scores` are G."""


class Perturb(nn.Module):
    """Turns the children's scores into perturbed ones."""

    def forward(
        self,
        total_BWC: Tensor,
        first_BW: Tensor,
        perturbed_BW: Tensor,
        phi_BW: Tensor,
        state_BWS: Tensor,
        temperatures_B: Tensor,
        child_code: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """From the totals of `Step` and the beams' own G and phi to the children's G and phi, each [B, W, C]."""
        legal_BWC = total_BWC > DEAD / 2
        logit_BWC = (total_BWC - perturbed_BW.unsqueeze(2)) / temperatures_B[:, None, None]
        phi_BWC = torch.where(legal_BWC, logit_BWC, DEAD).log_softmax(2)
        noisy_BWC = phi_BWC + gumbel(uniform(state_BWS, _codes(first_BW, total_BWC.shape[2], child_code)))
        most_BW1 = torch.where(legal_BWC, noisy_BWC, DEAD).amax(2, keepdim=True)
        # The parent's G, on the scale on which phi of the parent is 0.
        bound_BW1 = (perturbed_BW - phi_BW).unsqueeze(2)
        below_BWC = 1 - (noisy_BWC - most_BW1).exp()
        v_BWC = bound_BW1 - noisy_BWC + below_BWC.clamp(min=1e-30).log()
        fall_BWC = v_BWC.clamp(min=0.0) + (1 + (-v_BWC.abs()).exp()).log()
        fall_BWC = torch.where(noisy_BWC >= most_BW1, 0.0, fall_BWC)
        alive_BWC = legal_BWC & (perturbed_BW > DEAD / 2).unsqueeze(2)
        return torch.where(alive_BWC, perturbed_BW.unsqueeze(2) - fall_BWC, DEAD), phi_BWC


def _codes(first_BW: Tensor, num_branches: int, child_code: Tensor) -> Tensor:
    """Codes [B, W, C] of the children; what stands where there is no child is never used."""
    child_BWC = first_BW.clamp(min=0).unsqueeze(2) + torch.arange(num_branches, device=first_BW.device)
    return take(child_code, torch.where(child_BWC < child_code.shape[0], child_BWC, 0))


class InheritNoise(nn.Module):
    """Lets every new beam inherit what its parent drew."""

    def forward(
        self,
        parent_BU: Tensor,
        child_BU: Tensor,
        drawn_BU: Tensor,
        phi_BW: Tensor,
        trace_BWP: Tensor,
        state_BWS: Tensor,
        child_code: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`drawn_BU`: phi of the new codes. Returns phi so far [B, U], its trace [B, U, P + 1], states [B, U, S]."""
        parent_BU1 = parent_BU.unsqueeze(2)
        state_BUS = state_BWS.gather(1, parent_BU1.expand(-1, -1, state_BWS.shape[2]))
        trace_BUP = trace_BWP.gather(1, parent_BU1.expand(-1, -1, trace_BWP.shape[2]))
        trace_BUP = torch.cat([trace_BUP, drawn_BU.unsqueeze(2)], 2)
        code_BU = take(child_code, child_BU.clamp(min=0))
        return phi_BW.gather(1, parent_BU) + drawn_BU, trace_BUP, after_code(state_BUS, code_BU)


class FinishSampled(nn.Module):
    """Brings the beams into the form that a runner returns."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(
        self, perturbed_BW: Tensor, rows_BWR: Tensor, trace_BWP: Tensor, drawn_BWP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As `Finish`, but that scores are G; then phi of every code [B, W, K, L]."""
        rows_BWK = torch.where((perturbed_BW > DEAD / 2).unsqueeze(2), rows_BWR[:, :, 1:], -1)
        valid_BWK = rows_BWK >= 0
        both = [
            torch.where(valid_BWK.unsqueeze(3), trace[:, :, 1:].unflatten(2, (-1, self.num_levels)), 0.0)
            for trace in (trace_BWP, drawn_BWP)
        ]
        return rows_BWK, valid_BWK, both[0], perturbed_BW, both[1]


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
        self._trace: Value
        self._child: Value
        self._drawn: Value
        self._level_propensities: Value

    def run(self, piece: str, *values: Value) -> tuple[Value, ...]:
        """Runs one piece."""
        match piece:
            case "start":
                out = self._pieces.run(piece, *values)
                self._perturbed, self._trace = out[2], out[5]
                self._phi = self._perturbed
                return out
            case "select":
                return self._select(*values)
            case "distinct":
                *chosen, self._drawn = self._pieces.run("distinct_sampled", *values, self._drawn)
                self._perturbed, self._child = chosen[0], chosen[2]
                return tuple(chosen)
            case "advance":
                self._inherit(values[0])
                return self._pieces.run(piece, *values)
            case "finish":
                *outputs, self._level_propensities = self._pieces.run("finish_sampled", *values[:3], self._trace)
                return tuple(outputs)
            case _:
                return self._pieces.run(piece, *values)

    def parameter(self, name: str, *index: int) -> Value:
        """See `Pieces.parameter`."""
        return self._pieces.parameter(name, *index)

    def level_propensities(self) -> Value:
        """`LEVEL_PROPENSITIES`, once the search has run."""
        return self._level_propensities

    def _select(self, total: Value, logprob: Value, first: Value, beams: Value) -> tuple[Value, ...]:
        noise = (self._phi, self._state, self._temperatures, self._child_code())
        total, phi = self._pieces.run("perturb", total, first, self._perturbed, *noise)
        *chosen, self._drawn = self._pieces.run("select_sampled", total, logprob, first, beams, phi)
        self._perturbed, self._child = chosen[0], chosen[2]
        return tuple(chosen)

    def _inherit(self, parent: Value) -> None:
        state = (self._phi, self._trace, self._state, self._child_code())
        self._phi, self._trace, self._state = self._pieces.run(
            "inherit_noise", parent, self._child, self._drawn, *state
        )
        self._num_codes += 1

    def _child_code(self) -> Value:
        return self._child_codes[self._num_codes % len(self._child_codes)]


def run_sampler(
    pieces: Pieces[Value], inputs: Mapping[str, Value], slate_size: int, num_levels: int
) -> dict[str, Value]:
    """Slates drawn without replacement: outputs by name, as of the search and `LEVEL_PROPENSITIES`."""
    sampled = SampledPieces(pieces, inputs, num_levels)
    return run_search(sampled, inputs, slate_size, num_levels) | {LEVEL_PROPENSITIES: sampled.level_propensities()}
