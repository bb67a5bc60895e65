"""The pieces that a beam search is made of, each a small module: run eagerly, or exported once and copied.

`model_export.search.driver` puts them together. A piece takes and returns plain tensors in a fixed order. Pieces of a
layer exist once for each layer, and are exported for one of them: what differs are weights.

Legend: B requests, T history, L levels, W beams in, U beams out, N = B * W beams of all requests, K slate size, S codes
of the suffix, P codes so far, R chosen items plus one dummy, G places for full groups, C candidates of
a beam, V codes of a level, X excluded rows, F filter slots, I items of the catalog, D width, H heads, M nodes of a
level.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from model_export.model.decoder import DecoderLayer
from model_export.model.generator import Generator, HistoryBatch
from model_export.model.history import NUM_RESERVED_CODES
from model_export.search.candidates import DEAD, Filters, child_of_rows, full_groups, open_root, take
from model_export.search.choice import Distinct, Places, Select, SelectRoot, Widen
from model_export.search.forced import FinishForced, Force, RunnerUps
from model_export.search.noise import StartNoise
from model_export.search.sampled import CodesOf, FinishSampled, InheritNoise, Perturb
from model_export.search.scores import Score, ScoreRoot


class Embed(nn.Module):
    """What the encoder's layers read of the histories."""

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
        *vectors: Tensor,
    ) -> tuple[Tensor, ...]:
        """`vectors`: history rows [B, T] and item vectors [I, D], where there are any.

        Returns vectors [B, T + 1, D], their bias, and with item vectors the interest [B, D].
        """
        rows_BT, vectors_ID = vectors or (None, None)
        history = HistoryBatch(
            codes_BTL=codes_BTL,
            actions_BT=actions_BT,
            ages_BT=ages_BT,
            values_BT=values_BT,
            lengths_B=lengths_B,
            rows_BT=rows_BT,
        )
        items_BTD, interest_BD = self.generator.read_items(history, vectors_ID)
        embedded = self.generator.encoder.embed(codes_BTL, actions_BT, ages_BT, values_BT, lengths_B, items_BTD)
        return embedded if interest_BD is None else (*embedded, interest_BD)


class Remember(nn.Module):
    """What one layer of the decoder reads of the histories."""

    def __init__(self, generator: Generator, layer: DecoderLayer) -> None:
        super().__init__()
        self.norm = generator.encoder.norm
        self.attention = layer.cross_attention

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """From the output of the encoder's layers to keys and values [B, H, T, C], shared by all beams and steps."""
        return self.attention.context(self.norm(x_BTD))


class Start(nn.Module):
    """Sets up one empty beam per request."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.num_levels = generator.spec.num_levels
        self.heads = (generator.config.num_heads, generator.config.head_width)

    def forward(
        self, excluded_BX: Tensor, filter_slots_B: Tensor, allowed_cumsum_FI: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns `Excluded.change_BX`, score_BW, node_BW, trail_NP, trace_NP, and an empty suffix [N, 0, H, C].

        A beam's trail are the trie's children that it has chosen, code by code, after one dummy (-1) for each level;
        its trace their logprobs, after one dummy.
        """
        filters = Filters(allowed_cumsum_FI, filter_slots_B)
        row_BX = excluded_BX.clamp(min=0)
        is_allowed_BX = filters.allowed_before(row_BX + 1) > filters.allowed_before(row_BX)
        node_BW = torch.zeros_like(filter_slots_B).unsqueeze(1)
        trace_NP = node_BW.to(torch.float32)
        return (
            torch.where((excluded_BX >= 0) & is_allowed_BX, -1, 0).to(torch.int32),
            trace_NP,
            node_BW,
            node_BW.expand(-1, self.num_levels) - 1,
            trace_NP,
            trace_NP[:, :0, None, None].expand(-1, -1, *self.heads),
        )


class OpenRoot(nn.Module):
    """Counts once a run what may be shown below each code of the first level."""

    def forward(
        self,
        excluded_BX: Tensor,
        change_BX: Tensor,
        sids_IL: Tensor,
        level_1: Tensor,
        child_code: Tensor,
        child_row: Tensor,
        child_group: Tensor,
        allowed_cumsum_FI: Tensor,
        filter_slots_B: Tensor,
        head_bias_V: Tensor,
    ) -> tuple[Tensor, ...]:
        """`head_bias_V` only gives V. Returns the fields of `candidates.Root`."""
        code_BX = take(sids_IL, excluded_BX.clamp(min=0)).index_select(2, level_1).squeeze(2)
        root = open_root(
            excluded_BX,
            change_BX,
            code_BX.to(torch.int64),
            child_code,
            child_row,
            child_group,
            Filters(allowed_cumsum_FI, filter_slots_B),
            head_bias_V.shape[0],
        )
        return tuple(vars(root).values())


class RootVectors(nn.Module):
    """The vectors of the root's children by their code; where there is none, any."""

    def forward(self, child_V: Tensor, vectors_MD: Tensor) -> Tensor:
        """Returns [V, D]."""
        return take(vectors_MD, child_V.clamp(min=0))


class ExcludedChildren(nn.Module):
    """The child of a deeper level below which each excluded row lies."""

    def forward(
        self, excluded_BX: Tensor, parent_BX: Tensor, child_begin: Tensor, child_row: Tensor, branch_C: Tensor
    ) -> Tensor:
        """`branch_C`: 0, 0, 1, ... Returns [B, X]; -1: padding."""
        return child_of_rows(excluded_BX, parent_BX, child_begin, child_row, branch_C[1:])


class Spread(nn.Module):
    """What is the same for all beams of a request, for each of them."""

    def forward(self, values_BX: Tensor, beams_W: Tensor) -> Tensor:
        """`beams_W` only gives W. Returns [B, W, X]."""
        return values_BX.unsqueeze(1).expand(-1, beams_W.shape[0], -1)


class Offsets(nn.Module):
    """Where the beams of each request begin among those of all requests."""

    def forward(self, slots_B: Tensor, width_W: Tensor) -> Tensor:
        """The arguments only give B and W. Returns [B, 1]."""
        return torch.arange(slots_B.shape[0], device=slots_B.device).unsqueeze(1) * width_W.shape[0]


class FirstToken(nn.Module):
    """Decoder input before the first item."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.into_slate = None if generator.affinity is None else generator.affinity.into_slate

    def forward(self, trace_NP: Tensor, offset_D: Tensor, *interest: Tensor) -> Tensor:
        """Returns [N, D]; `interest` [N, D], where there are item vectors."""
        x_ND = torch.zeros_like(trace_NP[:, :1]) + offset_D
        return x_ND if self.into_slate is None else x_ND + self.into_slate(interest[0])


class ItemToken(nn.Module):
    """Decoder input before every later item: [BOS] and the item just written."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.affinity = generator.affinity

    def forward(self, trail_NP: Tensor, sids_IL: Tensor, offset_D: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Returns [N, D], and the interest after the item where there are item vectors.

        `rest`: with item vectors the interest [N, D] and the vectors; then the code embeddings [V + 2, D] by level.
        """
        tables = rest if self.affinity is None else rest[2:]
        row_N = trail_NP[:, -1].clamp(min=0)
        code_NL = take(sids_IL, row_N) + NUM_RESERVED_CODES
        x_ND = offset_D
        for level, table in enumerate(tables):
            x_ND = x_ND + take(table, code_NL[:, level])
        if self.affinity is None:
            return (x_ND,)
        interest_ND = self.affinity.after(rest[0], take(rest[1], row_N))
        return x_ND + self.affinity.into_slate(interest_ND), interest_ND


class CodeToken(nn.Module):
    """Decoder input after a code inside an item."""

    def forward(self, child_BW: Tensor, child_code: Tensor, table: Tensor, offset_D: Tensor) -> Tensor:
        """Returns [N, D]; what it holds for a beam that has ended is never used."""
        return take(table, take(child_code, child_BW.clamp(min=0).flatten()) + NUM_RESERVED_CODES) + offset_D


class BeginItem(nn.Module):
    """Puts every beam that has not ended at the root of the trie, and notes what holds for the whole item."""

    def forward(
        self,
        score_BW: Tensor,
        trail_NP: Tensor,
        items_R: Tensor,
        settled_N1: Tensor,
        row_group_I: Tensor,
        group_limits_B: Tensor,
        cap_slots_G: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`items_R`: places of whole items in the trail; `settled_N1`: of the item before.

        Returns node 0 or -1 [B, W], `full_groups` [N, G], and the settled scores: a beam's settled score is that of
        its whole items. Beams hand the latter two on as they do their suffix.
        """
        rows_BWR = trail_NP.index_select(1, items_R).unflatten(0, (score_BW.shape[0], -1))
        has_ended_BW = rows_BWR[:, :, -1] < 0
        settled_BW = torch.where(has_ended_BW, settled_N1.view_as(score_BW), score_BW)
        place_G = torch.arange(cap_slots_G.shape[0], device=cap_slots_G.device)
        full_NG = full_groups(rows_BWR, row_group_I, group_limits_B, place_G).flatten(0, 1)
        return torch.where(has_ended_BW, -1, 0).to(torch.int32), full_NG, settled_BW.reshape(-1, 1)


class DecodeLayer(nn.Module):
    """One layer of the decoder, for one code of every beam."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        x_ND: Tensor,
        key_NSHC: Tensor,
        value_NSHC: Tensor,
        context_key_BHTC: Tensor,
        context_value_BHTC: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the code's vector, and the suffix's keys and values with it appended."""
        return self.layer.step(x_ND, key_NSHC, value_NSHC, (context_key_BHTC, context_value_BHTC), bias)


class Advance(nn.Module):
    """Lets every new beam inherit what its parent wrote."""

    def forward(
        self,
        parent_BU: Tensor,
        child_BU: Tensor,
        logprob_BU: Tensor,
        offset_B1: Tensor,
        trail_NP: Tensor,
        trace_NP: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns trail and trace with the new code appended, and the rest, [N, ...], of the new beams."""
        place_N = (parent_BU + offset_B1).flatten()
        trail_NP = torch.cat([trail_NP.index_select(0, place_N), child_BU.reshape(-1, 1)], 1)
        trace_NP = torch.cat([trace_NP.index_select(0, place_N), logprob_BU.reshape(-1, 1)], 1)
        return (trail_NP, trace_NP, *[tensor.index_select(0, place_N) for tensor in rest])


class Finish(nn.Module):
    """Brings the beams into the form that a runner returns."""

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels

    def forward(
        self, score_BW: Tensor, trail_NP: Tensor, trace_NP: Tensor, items_R: Tensor, settled_N1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`items_R`: places of whole items in the trail.

        Returns item rows [B, W, K], their validity, level logprobs [B, W, K, L] and scores [B, W].
        """
        is_alive_BW = score_BW > DEAD / 2
        rows_BWK = trail_NP.index_select(1, items_R[1:]).unflatten(0, (score_BW.shape[0], -1))
        rows_BWK = torch.where(is_alive_BW.unsqueeze(2), rows_BWK, -1)
        valid_BWK = rows_BWK >= 0
        logprob_BWKL = trace_NP[:, 1:].unflatten(1, (-1, self.num_levels)).unflatten(0, (score_BW.shape[0], -1))
        logprob_BWKL = torch.where(valid_BWK.unsqueeze(3), logprob_BWKL, 0.0)
        # Once all are in order, a beam that a cap cut short gets its true score back.
        has_ended_BW = is_alive_BW & (rows_BWK[:, :, -1] < 0)
        score_BW = torch.where(has_ended_BW, settled_N1.view_as(score_BW), score_BW)
        return rows_BWK, valid_BWK, logprob_BWKL, score_BW


Modules = Mapping[str, Sequence[nn.Module]]
"""Every piece by the name that the driver calls it; one for each layer, or one."""


def make_pieces(generator: Generator, reward: nn.Module | None = None) -> Modules:
    """Every piece of a search; `reward` where there is a reward model."""
    num_levels, decoder_layers = generator.spec.num_levels, generator.decoder.stack()
    singles: dict[str, nn.Module] = {
        **({} if reward is None else {"reward": reward}),
        "embed": Embed(generator),
        "start": Start(generator),
        "open_root": OpenRoot(),
        "root_vectors": RootVectors(),
        "excluded_children": ExcludedChildren(),
        "spread": Spread(),
        "offsets": Offsets(),
        "widen": Widen(),
        "places": Places(),
        "first_token": FirstToken(generator),
        "item_token": ItemToken(generator),
        "code_token": CodeToken(),
        "begin_item": BeginItem(),
        "score_root": ScoreRoot(generator),
        "score": Score(generator),
        "select_root": SelectRoot(),
        "select": Select(),
        "distinct": Distinct(),
        "advance": Advance(),
        "finish": Finish(num_levels),
        "force_root": Force(),
        "force": Force(),
        "finish_forced": FinishForced(num_levels),
        "runner_ups": RunnerUps(num_levels),
        "start_noise": StartNoise(),
        "codes_of": CodesOf(),
        "perturb_root": Perturb(),
        "perturb": Perturb(),
        "select_sampled_root": SelectRoot(),
        "select_sampled": Select(),
        "distinct_sampled": Distinct(),
        "inherit_noise": InheritNoise(),
        "finish_sampled": FinishSampled(num_levels),
    }
    return {name: (module,) for name, module in singles.items()} | {
        "encoder_layer": tuple(generator.encoder.layers),
        "remember": tuple(Remember(generator, layer) for layer in decoder_layers),
        "decode_layer": tuple(DecodeLayer(layer) for layer in decoder_layers),
    }
