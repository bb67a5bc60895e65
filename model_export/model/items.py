"""Item vectors: what the generator knows of each item beyond its codes.

An item's vector is a projection of its content or co-occurrence embedding plus a learned residual; the vector of a
prefix is the mean over the items under it. A code is scored by its own logit plus the affinity of a query with the
vector of the prefix that it leads to, so that prefixes compete by what lies under them, and the last code by the item
itself. A new item needs its embedding alone.

Legend: N items (rows), E embedding width, D vector width, M nodes of a level, B batch, T history length, K slate
size, S slate positions, C children of a node, L levels, A actions.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.trie import TriePaths

INITIAL_STD = 0.05
"""Of a vector's numbers before normalising: against the optimizer's step it says how fast a vector can turn."""
INITIAL_SCALE = 14.0
"""Of the cosines: one over a temperature of .07."""
INITIAL_DECAY = 0.5
"""An event weighs this much of the next newer one, until the weights are learned."""


class ItemVectors(nn.Module):
    """The vectors of the items that a generator is trained with, by their row in the catalog."""

    def __init__(self, width: int, embedding_NE: Tensor, is_seen_N: Tensor, paths: TriePaths) -> None:
        """Starts from the principal components of the embeddings.

        Args:
            width: D.
            embedding_NE: From the tokenizer, in the order of rows.
            is_seen_N: Items with training events. Only they learn a residual: as nothing but a wrong answer, an item
                would be pushed away from every user.
            paths: Of the catalog that the rows belong to.
        """
        super().__init__()
        self._paths = paths
        self.register_buffer("centre_E", embedding_NE.mean(0))
        self.register_buffer("embedding_NE", embedding_NE - embedding_NE.mean(0))
        self.register_buffer("is_seen_N1", is_seen_N.to(embedding_NE.dtype).unsqueeze(1))
        self.centre_E: Tensor
        self.embedding_NE: Tensor
        self.is_seen_N1: Tensor
        self.projection = nn.Linear(embedding_NE.shape[1], width, bias=False)
        self.residual_ND = nn.Parameter(torch.zeros(len(embedding_NE), width))
        self._start_from_principal_components()

    @property
    def paths(self) -> TriePaths:
        """Of the catalog, on the device of the vectors."""
        if self._paths.node_NL.device != self.residual_ND.device:
            self._paths = self._paths.to(self.residual_ND.device)
        return self._paths

    @torch.no_grad()
    def _start_from_principal_components(self) -> None:
        covariance_EE = self.embedding_NE.double().T @ self.embedding_NE.double()
        components_ED = torch.linalg.eigh(covariance_EE).eigenvectors.flip(1)[:, : self.residual_ND.shape[1]]
        nn.init.normal_(self.projection.weight, std=1e-3)
        self.projection.weight[: components_ED.shape[1]] = components_ED.T.float()
        spread = float(self.projection(self.embedding_NE).std())
        if spread > 0:
            self.projection.weight *= INITIAL_STD / spread

    def forward(self) -> Tensor:
        """Vectors [N, D] of length 1."""
        return F.normalize(self.projection(self.embedding_NE) + self.residual_ND * self.is_seen_N1, dim=1)

    def of_children(self, vectors_ND: Tensor) -> list[Tensor]:
        """Per level the vectors [M, D] of its nodes: the normalised mean of the items under each."""
        levels = []
        for level in range(1, self.paths.node_NL.shape[1]):
            node_N = self.paths.node_NL[:, level]
            sum_MD = vectors_ND.new_zeros(len(self.paths.child_code[level - 1]), vectors_ND.shape[1])
            levels.append(F.normalize(sum_MD.index_add(0, node_N, vectors_ND), dim=1))
        return levels


class Affinity(nn.Module):
    """What draws a user towards prefixes and items: interests pooled from the history, and queries made of them."""

    def __init__(self, config: ModelConfig, spec: GeneratorSpec, items: ItemVectors) -> None:
        super().__init__()
        self.items = items
        width = config.item_vector_width
        self.history_length = spec.history_length
        self.into_history = nn.Linear(width, config.width, bias=False)
        self.into_slate = nn.Linear(width, config.width, bias=False)
        self.from_interest = nn.Linear(width, width)
        self.from_hidden = nn.ModuleList(nn.Linear(config.width, width) for _ in range(spec.num_levels))
        nn.init.eye_(self.from_interest.weight)
        nn.init.zeros_(self.from_interest.bias)
        for layer in self.from_hidden:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.log_weight_T = nn.Parameter(torch.arange(spec.history_length).clamp(max=40) * math.log(INITIAL_DECAY))
        self.action_A1 = nn.Embedding(spec.num_actions + 1, 1)
        nn.init.ones_(self.action_A1.weight)
        self.decay_logit = nn.Parameter(torch.tensor(0.0))
        self.log_scale_L = nn.Parameter(torch.full((spec.num_levels,), math.log(INITIAL_SCALE)))
        self.dropout = nn.Dropout(config.dropout)

    def interest(self, vectors_BTD: Tensor, actions_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Pools the vectors of a history into [B, D]: weights by place from the newest, and by action."""
        place_BT = lengths_B.unsqueeze(1) - 1 - torch.arange(vectors_BTD.shape[1], device=lengths_B.device)
        weight_BT = F.embedding(place_BT.clamp(0, self.history_length - 1), self.log_weight_T.exp().unsqueeze(1))
        weight_BT1 = weight_BT * self.action_A1(actions_BT) * (place_BT >= 0).to(vectors_BTD.dtype).unsqueeze(2)
        interest_BD: Tensor = (vectors_BTD * weight_BT1).sum(1)
        return interest_BD

    def after(self, interest: Tensor, vector: Tensor) -> Tensor:
        """The interest once an item with this vector has been written, both [..., D]."""
        return self.decay_logit.sigmoid() * interest + vector

    def along(self, interest_BD: Tensor, vectors_BKD: Tensor) -> Tensor:
        """The interest [B, K, D] before each item of known slates."""
        interests = [interest_BD]
        for position in range(vectors_BKD.shape[1] - 1):
            interests.append(self.after(interests[-1], vectors_BKD[:, position]))
        return torch.stack(interests, 1)

    def query(self, level: int, interest: Tensor, hidden: Tensor) -> Tensor:
        """Scaled query [..., D] from interest [..., D] and the decoder's hidden vector."""
        q = self.from_interest(self.dropout(interest)) + self.from_hidden[level](hidden)
        return F.normalize(q, dim=-1) * self.log_scale_L[level].exp()

    def add_to_logits(
        self, level: int, logits_BKV: Tensor, query_BKD: Tensor, node_BK: Tensor, table_MD: Tensor
    ) -> Tensor:
        """Adds the affinity of every child of the nodes to the logit of its code.

        Args:
            level: Of the codes.
            logits_BKV: Of the codes alone.
            query_BKD: From `query`.
            node_BK: Where the known slates stand in the trie.
            table_MD: Vectors of the level's nodes, from `ItemVectors.of_children`.
        """
        paths = self.items.paths
        if level == 0:  # one product for all, instead of gathering the same children for each
            affinity_BKM = (query_BKD @ table_MD.T).to(logits_BKV.dtype)
            return logits_BKV.index_add(2, paths.child_code[0], affinity_BKM)
        child_BKC, exists_BKC = paths.children(level, node_BK)
        affinity_BKC = (table_MD[child_BKC] @ query_BKD.unsqueeze(3)).squeeze(3) * exists_BKC
        return logits_BKV.scatter_add(2, paths.child_code[level][child_BKC], affinity_BKC.to(logits_BKV.dtype))
