"""The load of the experts: counted while training, and evened out where the generator has choice biases.

Legend: H mixtures of the generator (one a decoder layer), E experts, A active experts, N tokens.
"""

import torch
from torch import Tensor

from model_export.model.experts import MixtureOfExperts
from model_export.model.generator import Generator

_IDLE_SHARE = 0.1
"""An expert with less than this share of an even load counts as idle."""

Load = list[list[int]]
"""[H][E]: tokens that chose each expert."""


class ExpertBalancer:
    """Loss-free balancing (Wang et al. 2024, arXiv 2408.15664, algorithm 1): no gradient, one bias an expert.

    After each step the bias of an expert with more than the mean load falls by the rate, that of one with less rises.
    Padding is not counted: its tokens are all alike, and no one ever reads them.
    """

    def __init__(self, generator: Generator) -> None:
        self._mixtures = [module for module in generator.modules() if isinstance(module, MixtureOfExperts)]
        self._rate = generator.config.expert_bias_rate

    def after_step(self, is_target_NJ: Tensor, num_levels: int) -> Load:
        """Reads what the last training pass chose, moves the biases, and returns the step's load.

        Args:
            is_target_NJ: Which items of the pass were targets; their tokens came in this order, item by item.
            num_levels: Tokens of an item.
        """
        is_target_N = is_target_NJ.flatten().repeat_interleave(num_levels)
        loads = []
        for mixture in self._mixtures:
            assert mixture.chosen_NA is not None, "balancing follows a training pass"
            num_experts = len(mixture.up_EFD)
            load_E = torch.bincount(mixture.chosen_NA[is_target_N].flatten(), minlength=num_experts)
            if self._rate > 0:
                mixture.shift_bias(load_E, self._rate)
            loads.append(load_E.tolist())
        return loads


def added(left: Load, right: Load) -> Load:
    """The sum of two loads; an empty one is nothing yet."""
    if not left:
        return right
    return [[one + other for one, other in zip(*layers, strict=True)] for layers in zip(left, right, strict=True)]


def load_figures(load: Load) -> dict[str, float]:
    """What the metrics say of an epoch's load; empty for a generator without experts.

    `expert_max_load_<layer>`: load of the busiest expert over the mean (1: even, E / A: all tokens choose it);
    `expert_idle_share`: share of all experts with less than a tenth of the mean load.
    """
    if not load:
        return {}
    means = [sum(layer) / len(layer) for layer in load]
    relative = [[count / mean for count in layer] for layer, mean in zip(load, means, strict=True)]
    idle = [share < _IDLE_SHARE for layer in relative for share in layer]
    figures = {f"expert_max_load_{number}": max(layer) for number, layer in enumerate(relative)}
    return figures | {"expert_idle_share": sum(idle) / len(idle)}
