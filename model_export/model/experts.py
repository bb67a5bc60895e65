"""Feed-forward layers: dense, and a sparse mixture of experts.

Legend: N tokens, D width, F hidden width, E experts, A active experts, M spare tokens.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_NOT_CHOSEN = -1e9
"""Router logit of an expert that the biased choice left out; finite, so that no softmax meets infinity alone."""


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., D] to [..., D]."""
        # Flat, because a two-dimensional linear layer exports to one Gemm that takes bias and ReLU along.
        out: Tensor = self.down(F.relu(self.up(x.flatten(0, -2))))
        return out.view_as(x)


class MixtureOfExperts(nn.Module):
    """Each token goes to its best A of E experts; their outputs are mixed by the renormalised router weights.

    OneRec (arXiv 2502.18965, section 3.2) puts it in the decoder's feed-forwards. No token is ever dropped for
    capacity. Only the experts that a token chose compute for it: in PyTorch by grouping the tokens by expert, in the
    exported graph through the operator `com.microsoft.MoE`, where every expert also computes one spare token.

    With `has_bias` a bias per expert is added to the router logits for the choice alone, never for the weights: the
    loss-free balancing of Wang et al. 2024 (arXiv 2408.15664, algorithm 1). `shift_bias` moves it.
    """

    def __init__(self, width: int, hidden: int, num_experts: int, num_active: int, *, has_bias: bool = False) -> None:
        super().__init__()
        self.num_active = num_active
        self.chosen_NA: Tensor | None = None
        """The experts that the tokens of the last training pass chose; None before one."""
        self.router = nn.Linear(width, num_experts, bias=False)
        bound = width**-0.5
        self.up_EFD = nn.Parameter(torch.empty(num_experts, hidden, width).uniform_(-bound, bound))
        self.up_bias_EF = nn.Parameter(torch.zeros(num_experts, hidden))
        bound = hidden**-0.5
        self.down_EDF = nn.Parameter(torch.empty(num_experts, width, hidden).uniform_(-bound, bound))
        self.down_bias_ED = nn.Parameter(torch.zeros(num_experts, width))
        self.register_buffer("spare_routing_ME", _spare_routing(num_experts, num_active), persistent=False)
        self.spare_routing_ME: Tensor
        # Saved with the weights, and absent where nothing is balanced.
        self.register_buffer("choice_bias_E", torch.zeros(num_experts) if has_bias else None)
        self.choice_bias_E: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [..., D] to [..., D]."""
        x_ND = x.flatten(0, -2)
        router_NE = self.router(x_ND)
        out_ND = self._fused(x_ND, router_NE) if torch.compiler.is_exporting() else self._grouped(x_ND, router_NE)
        return out_ND.view_as(x)

    @torch.no_grad()
    def shift_bias(self, load_E: Tensor, rate: float) -> None:
        """Moves the bias of every expert by `rate` towards an even load; `load_E` counts the tokens that chose it."""
        assert self.choice_bias_E is not None, "a mixture without a bias cannot be balanced"
        load_E = load_E.to(self.choice_bias_E.dtype)
        self.choice_bias_E += rate * (load_E.mean() - load_E).sign()

    def _biased(self, router_NE: Tensor) -> Tensor:
        return router_NE if self.choice_bias_E is None else router_NE + self.choice_bias_E

    def _grouped(self, x_ND: Tensor, router_NE: Tensor) -> Tensor:
        expert_NA = self._biased(router_NE).topk(self.num_active, dim=-1).indices
        weight_NA = router_NE.gather(1, expert_NA).softmax(-1)
        if self.training:
            self.chosen_NA = expert_NA
        # Sorted by expert, each expert's tokens are one slice: one pair of products per expert, none for idle ones.
        order = expert_NA.flatten().argsort(stable=True)
        token = order // self.num_active
        counts = torch.bincount(expert_NA.flatten(), minlength=len(self.up_EFD)).tolist()
        pieces = []
        for expert, x_nD in enumerate(x_ND[token].split(counts)):
            if len(x_nD):
                hidden = F.relu(F.linear(x_nD, self.up_EFD[expert], self.up_bias_EF[expert]))
                pieces.append(F.linear(hidden, self.down_EDF[expert], self.down_bias_ED[expert]))
        out = torch.cat(pieces) * weight_NA.flatten()[order].unsqueeze(-1).to(pieces[0].dtype)
        return torch.zeros_like(x_ND, dtype=out.dtype).index_add(0, token, out)

    def _fused(self, x_ND: Tensor, router_NE: Tensor) -> Tensor:
        if self.choice_bias_E is not None:
            # The operator chooses by the logits that it mixes by, so it is shown only those of the chosen experts.
            biased_NE = self._biased(router_NE)
            least_N1 = biased_NE.topk(self.num_active, dim=-1).values[:, -1:]
            router_NE = torch.where(biased_NE >= least_N1, router_NE, _NOT_CHOSEN)
        # onnxruntime multiplies a single row with another kernel than several, which sums in another order: an expert
        # with one token would give it other last bits than with two, and so an answer would depend on who shares the
        # batch. M spare tokens, dropped afterwards, give every expert one row more.
        num_spare = len(self.spare_routing_ME)
        x_ND = torch.cat([x_ND, x_ND.new_zeros(num_spare, x_ND.shape[1])])
        router_NE = torch.cat([router_NE, self.spare_routing_ME.to(router_NE.dtype)])
        out_ND = torch.onnx.ops.symbolic(
            "com.microsoft::MoE",
            (x_ND, router_NE, self.up_EFD, self.up_bias_EF, self.down_EDF, self.down_bias_ED),
            {"k": self.num_active, "activation_type": "relu", "normalize_routing_weights": 1},
            dtype=x_ND.dtype,
            shape=x_ND.shape,
            version=1,
        )
        return out_ND[:-num_spare]


def _spare_routing(num_experts: int, num_active: int) -> Tensor:
    """Router logits [M, E] of the fewest tokens that reach every expert: A at a time."""
    num_spare = math.ceil(num_experts / num_active)
    expert_MA = torch.arange(num_spare * num_active).view(num_spare, num_active) % num_experts
    return torch.zeros(num_spare, num_experts).scatter(1, expert_MA, 1.0)


def feed_forward(width: int, hidden: int, num_experts: int, num_active: int, *, has_bias: bool = False) -> nn.Module:
    """A dense layer for one expert, a mixture for more."""
    if num_experts == 1:
        return FeedForward(width, hidden)
    return MixtureOfExperts(width, hidden, num_experts, num_active, has_bias=has_bias)
