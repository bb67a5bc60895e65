"""The pieces that a beam search is made of, each a small module: run eagerly, or exported once and copied.

`model_export.search.driver` puts them together. A piece takes and returns plain tensors in a fixed order.

Legend: B requests, T history, L levels, W beams in, U beams out, K slate size, S codes of the suffix, R chosen rows
plus one dummy, G places for full groups, C children of a node, V codes of a level, X excluded rows, F filter slots,
N items, D width, H heads, A = heads x head width, P logprobs so far, N beams of all requests (or items), M nodes of a
level.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.model import Generator, HistoryBatch
from model_export.model.history import NUM_RESERVED_CODES
from model_export.search.candidates import DEAD, child_logprobs, full_groups, legal_children, take
from model_export.search.choice import Distinct, Select, Widen
from model_export.search.forced import FinishForced, Force, RunnerUps
from model_export.search.noise import StartNoise
from model_export.search.sampled import FinishSampled, InheritNoise, Perturb

MISSING = 1024.0
"""What a beam's score loses for every item that a cap keeps it from writing: more than any item's logprob, so that
longer slates come first; small enough for float32 to keep the order of what is equally long."""


def pairs(flat: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, from the flat order in which pieces pass them."""
    return list(zip(flat[::2], flat[1::2], strict=True))


class Start(nn.Module):
    """Encodes the histories and sets up one empty beam per request."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self,
        codes_BTL: Tensor,
        actions_BT: Tensor,
        ages_BT: Tensor,
        values_BT: Tensor,
        lengths_B: Tensor,
        excluded_BX: Tensor,
        filter_slots_B: Tensor,
        allowed_cumsum_FN: Tensor,
        *vectors: Tensor,
    ) -> tuple[Tensor, ...]:
        """Encodes and counts; `vectors`: history rows [B, T] and item vectors [N, D], where there are any.

        Returns bias, counts_BX, score_BW, rows_BWR, node_BW, trace_BWP, an empty suffix [B, 0, A], with item vectors
        the interest [B, D], and the context keys and values of every layer.
        """
        rows_BT, vectors_ND = vectors or (None, None)
        history = HistoryBatch(
            codes_BTL=codes_BTL,
            actions_BT=actions_BT,
            ages_BT=ages_BT,
            values_BT=values_BT,
            lengths_B=lengths_B,
            rows_BT=rows_BT,
        )
        memory_BTD, bias, interest_BD = self.generator.encode(history, vectors_ND)
        context = self.generator.decoder.context(memory_BTD)
        offset_B1 = (filter_slots_B * allowed_cumsum_FN.shape[1]).unsqueeze(1)
        cumsum = allowed_cumsum_FN.flatten()
        row_BX = excluded_BX.clamp(min=0) + offset_B1
        counts_BX = (excluded_BX >= 0) & (take(cumsum, row_BX + 1) > take(cumsum, row_BX))
        node_BW = torch.zeros_like(lengths_B, dtype=torch.int64).unsqueeze(1)
        score_BW = node_BW.to(torch.float32)
        rows_BWR = node_BW.to(torch.int32).unsqueeze(2) - 1
        trace_BWP = score_BW.unsqueeze(2)
        inner = self.generator.config.num_heads * self.generator.config.head_width
        suffix_NSA = trace_BWP[:, 0, :0, None].expand(-1, -1, inner)
        flat = [tensor for pair in context for tensor in pair]
        interest = () if interest_BD is None else (interest_BD,)
        return (bias, counts_BX, score_BW, rows_BWR, node_BW, trace_BWP, suffix_NSA, *interest, *flat)


class ExcludedCodes(nn.Module):
    """One-hot codes of the excluded rows at one level."""

    def forward(self, excluded_BX: Tensor, sids_NL: Tensor, level_1: Tensor, head_bias_V: Tensor) -> Tensor:
        """Returns [B, X, V] floats; `head_bias_V` only gives V."""
        code_BX1 = take(sids_NL, excluded_BX.clamp(min=0)).index_select(2, level_1)
        return (code_BX1 == torch.arange(head_bias_V.shape[0], device=code_BX1.device)).to(torch.float32)


class FirstToken(nn.Module):
    """Decoder input before the first item."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.affinity = generator.affinity

    def forward(self, score_BW: Tensor, offset_D: Tensor, *interest: Tensor) -> Tensor:
        """Returns [B, W, D]; `interest` [N, D], where there are item vectors."""
        x_BWD = torch.zeros_like(score_BW).unsqueeze(-1) + offset_D
        if self.affinity is not None:
            x_BWD = x_BWD + self.affinity.into_slate(interest[0]).view_as(x_BWD)
        return x_BWD


class ItemToken(nn.Module):
    """Decoder input before every later item: [BOS] and the item just written."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.affinity = generator.affinity

    def forward(self, rows_BWR: Tensor, sids_NL: Tensor, offset_D: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Returns [B, W, D], and the interest after the item where there are item vectors.

        `rest`: with item vectors the interest [N, D] and the vectors; then the code embeddings [V + 2, D] by level.
        """
        tables = rest if self.affinity is None else rest[2:]
        row_BW = rows_BWR[:, :, -1].clamp(min=0)
        code_BWL = take(sids_NL, row_BW) + NUM_RESERVED_CODES
        x_BWD = offset_D
        for level, table in enumerate(tables):
            x_BWD = x_BWD + take(table, code_BWL[:, :, level])
        if self.affinity is None:
            return (x_BWD,)
        interest_ND = self.affinity.after(rest[0], take(rest[1], row_BW.flatten()))
        return x_BWD + self.affinity.into_slate(interest_ND).view_as(x_BWD), interest_ND


class CodeToken(nn.Module):
    """Decoder input after a code inside an item."""

    def forward(self, child_BW: Tensor, child_code: Tensor, table: Tensor, offset_D: Tensor) -> Tensor:
        """Returns [B, W, D]; what it holds for a beam that has ended is never used."""
        return take(table, take(child_code, child_BW.clamp(min=0)) + NUM_RESERVED_CODES) + offset_D


class BeginItem(nn.Module):
    """Puts every beam that has not ended at the root of the trie, and notes what holds for the whole item."""

    def forward(
        self,
        score_BW: Tensor,
        rows_BWR: Tensor,
        settled_N1: Tensor,
        row_group_N: Tensor,
        group_limits_B: Tensor,
        cap_slots_G: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`settled_N1`: of the item before. Returns node 0 or -1 [B, W], `full_groups` [N, G], and the settled scores.

        A beam's settled score is that of its whole items. Beams hand the latter two on as they do their suffix.
        """
        has_ended_BW = rows_BWR[:, :, -1] < 0
        settled_BW = torch.where(has_ended_BW, settled_N1.view_as(score_BW), score_BW)
        place_G = torch.arange(cap_slots_G.shape[0], device=cap_slots_G.device)
        full_NG = full_groups(rows_BWR, row_group_N, group_limits_B, place_G).flatten(0, 1)
        return torch.where(has_ended_BW, -1, 0), full_NG, settled_BW.reshape(-1, 1)


class Step(nn.Module):
    """Decodes one code per beam and scores the children of each beam's node.

    `at_root`: of the first code of an item. There all beams of a request share one table of children, and the request's
    diversity lowers a child's score for every item of the slate that lies below it; logprobs stay what they are.
    """

    def __init__(self, generator: Generator, *, at_root: bool = False) -> None:
        super().__init__()
        self.decoder = generator.decoder
        self.affinity = generator.affinity
        self.score_mode = generator.config.score_mode
        self.at_root = at_root

    def forward(
        self,
        x_BWD: Tensor,
        bias: Tensor,
        score_BW: Tensor,
        node_BW: Tensor,
        rows_BWR: Tensor,
        sids_NL: Tensor,
        level_1: Tensor,
        num_missing: Tensor,
        child_begin: Tensor,
        child_code: Tensor,
        child_row: Tensor,
        child_group: Tensor,
        full_NG: Tensor,
        settled_N1: Tensor,
        branch_C: Tensor,
        excluded_BX: Tensor,
        counts_BX: Tensor,
        code_BXV: Tensor,
        allowed_cumsum_FN: Tensor,
        filter_slots_B: Tensor,
        group_limits_B: Tensor,
        diversities_B: Tensor,
        head_VD: Tensor,
        head_bias_V: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """Decodes and scores.

        `num_missing`: items that the slate lacks if it ends here. `rest`: with item vectors the interest [N, D], the
        vectors [M, D] of the level's children, and weight, bias and scale of the level's queries; then the suffix and
        the context of every layer, each keys and values.

        A beam without a legal child ends: it goes back to its score before the item, or, under a cap, behind all longer
        ones, and has one child, of number -1.

        Returns scores [B, W, C] and logprobs [B, W, C] of the children, first_BW, and the grown suffix.
        """
        layers = rest if self.affinity is None else rest[5:]
        half = len(layers) // 2
        hidden_ND, suffix = self.decoder.step(x_BWD.flatten(0, 1), pairs(layers[:half]), pairs(layers[half:]), bias)
        logits_BWV = F.linear(hidden_ND, head_VD, head_bias_V).unflatten(0, (bias.shape[0], -1))
        chosen_code_BWR = take(sids_NL, rows_BWR.clamp(min=0)).index_select(3, level_1).squeeze(3)
        first_BW, code_BWC, exists_BWC, legal_BWC, taken_BWC = legal_children(
            node_BW,
            (rows_BWR, chosen_code_BWR),
            child_begin,
            child_row,
            branch_C,
            (excluded_BX, counts_BX, code_BXV),
            child_code,
            allowed_cumsum_FN,
            filter_slots_B,
            (child_group, full_NG.unflatten(0, (bias.shape[0], -1))),
        )
        affinity_BWC = None
        if self.affinity is not None:
            query_BWD = self._query(hidden_ND, *rest[:1], *rest[2:5]).unflatten(0, (bias.shape[0], -1))
            affinity_BWC = self._affinities(query_BWD, rest[1], first_BW, branch_C, exists_BWC)
        logprob_BWC = child_logprobs(logits_BWV, code_BWC, exists_BWC, self.score_mode, affinity_BWC)
        total_BWC = score_BW.unsqueeze(-1) + logprob_BWC
        if self.at_root:
            total_BWC = total_BWC - diversities_B[:, None, None] * taken_BWC
        total_BWC = torch.where(legal_BWC, total_BWC, DEAD)
        ends_BW = ~legal_BWC.any(-1)
        fall_B1 = torch.where(group_limits_B > 0, num_missing * MISSING, 0.0).unsqueeze(1)
        # What has ended before stays where it is, and so does what is dead.
        ends_here_BW = (node_BW >= 0) & (score_BW > DEAD / 2)
        kept_BW = torch.where(ends_here_BW, settled_N1.view_as(score_BW) - fall_B1, score_BW)
        kept_BWC = torch.where(branch_C == 0, kept_BW.unsqueeze(-1), DEAD)
        total_BWC = torch.where(ends_BW.unsqueeze(-1), kept_BWC, total_BWC)
        logprob_BWC = torch.where(ends_BW.unsqueeze(-1), 0.0, logprob_BWC)
        first_BW = torch.where(ends_BW, -1, first_BW)
        return (total_BWC, logprob_BWC, first_BW, *[tensor for pair in suffix for tensor in pair])

    def _query(self, hidden_ND: Tensor, interest_ND: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        """As `Affinity.query`, the level's parameters given."""
        assert self.affinity is not None
        query_ND = self.affinity.from_interest(interest_ND) + F.linear(hidden_ND, weight, bias)
        return F.normalize(query_ND, dim=-1) * scale

    def _affinities(
        self, query_BWD: Tensor, vectors_MD: Tensor, first_BW: Tensor, branch_C: Tensor, exists_BWC: Tensor
    ) -> Tensor:
        """Query times vector of each child, [B, W, C]."""
        if self.at_root:
            is_child_C = branch_C < vectors_MD.shape[0]
            return query_BWD @ take(vectors_MD, torch.where(is_child_C, branch_C, 0)).T
        child_BWC = torch.where(exists_BWC, first_BW.unsqueeze(-1) + branch_C, 0)
        return (take(vectors_MD, child_BWC) @ query_BWD.unsqueeze(3)).squeeze(3)


class Advance(nn.Module):
    """Lets every new beam inherit what its parent wrote."""

    def forward(
        self, parent_BU: Tensor, logprob_BU: Tensor, rows_BWR: Tensor, trace_BWP: Tensor, *suffix: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns rows_BUR, trace_BUP with the new logprob appended, and the suffix of each layer.

        Whatever else beams hand on, [N, ...], may stand before the suffix.
        """
        num_beams = rows_BWR.shape[1]
        offset_B1 = torch.arange(parent_BU.shape[0], device=parent_BU.device).unsqueeze(1) * num_beams
        place = (parent_BU + offset_B1).flatten()
        parent_BU1 = parent_BU.unsqueeze(2)
        rows_BUR = rows_BWR.gather(1, parent_BU1.expand(-1, -1, rows_BWR.shape[2]))
        trace_BUP = trace_BWP.gather(1, parent_BU1.expand(-1, -1, trace_BWP.shape[2]))
        trace_BUP = torch.cat([trace_BUP, logprob_BU.unsqueeze(2)], 2)
        return (rows_BUR, trace_BUP, *[tensor.index_select(0, place) for tensor in suffix])


class AppendRow(nn.Module):
    """Writes the finished item into each beam's slate."""

    def forward(self, rows_BWR: Tensor, child_BW: Tensor) -> Tensor:
        """A beam that has ended gets -1. Returns [B, W, R + 1]."""
        return torch.cat([rows_BWR, child_BW.to(rows_BWR.dtype).unsqueeze(2)], 2)


class Finish(nn.Module):
    """Brings the beams into the form that a runner returns."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(
        self,
        score_BW: Tensor,
        rows_BWR: Tensor,
        trace_BWP: Tensor,
        settled_N1: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns item rows [B, W, K], their validity, level logprobs [B, W, K, L] and scores [B, W]."""
        live_BW1 = (score_BW > DEAD / 2).unsqueeze(2)
        rows_BWK = torch.where(live_BW1, rows_BWR[:, :, 1:], -1)
        valid_BWK = rows_BWK >= 0
        logprob_BWKL = trace_BWP[:, :, 1:].unflatten(2, (-1, self.num_levels))
        logprob_BWKL = torch.where(valid_BWK.unsqueeze(3), logprob_BWKL, 0.0)
        # Once all are in order, a beam that a cap cut short gets its true score back.
        has_ended_BW = (score_BW > DEAD / 2) & (rows_BWR[:, :, -1] < 0)
        score_BW = torch.where(has_ended_BW, settled_N1.view_as(score_BW), score_BW)
        return rows_BWK, valid_BWK, logprob_BWKL, score_BW


def make_pieces(generator: Generator, reward: nn.Module | None = None) -> dict[str, nn.Module]:
    """Every piece by the name that the driver calls it; `reward` where there is a reward model."""
    return {
        **({} if reward is None else {"reward": reward}),
        "start": Start(generator),
        "excluded_codes": ExcludedCodes(),
        "widen": Widen(),
        "first_token": FirstToken(generator),
        "item_token": ItemToken(generator),
        "code_token": CodeToken(),
        "begin_item": BeginItem(),
        "step": Step(generator),
        "root_step": Step(generator, at_root=True),
        "select": Select(),
        "distinct": Distinct(),
        "advance": Advance(),
        "append_row": AppendRow(),
        "finish": Finish(generator.spec.num_levels),
        "force": Force(),
        "finish_forced": FinishForced(generator.spec.num_levels),
        "runner_ups": RunnerUps(generator.spec.num_levels),
        "start_noise": StartNoise(),
        "perturb": Perturb(),
        "select_sampled": Select(),
        "distinct_sampled": Distinct(),
        "inherit_noise": InheritNoise(),
        "finish_sampled": FinishSampled(generator.spec.num_levels),
    }
