"""The beam search on tensors: for evaluation, for rollouts, and as the reference of the exported graph.

Legend: B requests, T history, L levels, W beams, K items, X excluded rows, F filter slots, N items.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model_export.model.generator import Generator, HistoryBatch
from model_export.search.driver import (
    HISTORY_INPUTS,
    HISTORY_ROWS,
    ITEM_EMBEDDINGS,
    ITEM_REWARDS,
    run_search,
    vector_inputs,
)
from model_export.search.pieces import make_pieces
from model_export.search.sampled import LEVEL_PROPENSITIES, run_sampler
from service.catalog import CatalogSnapshot
from service.inference.feeds import seed_words


@dataclass(frozen=True, kw_only=True)
class Slates:
    """Candidate slates of each request, best first; fields as in `service.inference.runner.Decoded`."""

    item_rows_BWK: Tensor
    item_valid_BWK: Tensor
    level_logprobs_BWKL: Tensor
    scores_BW: Tensor
    item_rewards_BWK: Tensor | None = None
    level_log_propensities_BWKL: Tensor | None = None


class BeamSearch:
    """Decodes slates with one generator against one catalog snapshot."""

    def __init__(self, generator: Generator, catalog: CatalogSnapshot, reward: nn.Module | None = None) -> None:
        """With a piece `reward` (`model_export.reward.graph`) slates have rewards; the catalog brings embeddings."""
        self.generator = generator
        self.catalog = catalog
        self._has_reward = reward is not None
        device = generator.start_D.device
        trie = catalog.trie
        self._inputs = {"sids": torch.from_numpy(catalog.sids_NL).to(device)}
        for level in range(generator.spec.num_levels):
            self._inputs[f"child_begin_{level}"] = torch.from_numpy(trie.child_begin[level]).to(device)
            self._inputs[f"child_code_{level}"] = torch.from_numpy(trie.child_code[level]).to(device)
            self._inputs[f"child_row_{level}"] = torch.from_numpy(trie.child_row[level]).to(device)
            self._inputs[f"child_group_{level}"] = torch.from_numpy(catalog.child_groups[level]).to(device)
        if reward is not None:
            assert catalog.embeddings_NE is not None
            self._inputs[ITEM_EMBEDDINGS] = torch.from_numpy(catalog.embeddings_NE).to(device)
        self._pieces = EagerPieces(generator, trie.max_branch, reward)

    @torch.inference_mode()
    def decode(
        self,
        history: HistoryBatch,
        *,
        beam_width: int,
        num_items: int | None = None,
        excluded_rows_BX: Tensor | None = None,
        filter_slots_B: Tensor | None = None,
        allowed_cumsum_FN: Tensor | None = None,
        group_limits_B: Tensor | None = None,
        diversities_B: Tensor | None = None,
        temperature: float | None = None,
        seeds_B: Tensor | None = None,
    ) -> Slates:
        """Writes slates of `num_items` items (default: the generator's slate size).

        Args:
            history: The users' histories.
            beam_width: W.
            num_items: At most the generator's slate size.
            excluded_rows_BX: Rows that must not appear, padded with -1.
            filter_slots_B: Row of `allowed_cumsum_FN` for each request.
            allowed_cumsum_FN: [F, N + 1]; default: the catalog's available items.
            group_limits_B: Most items of one group in a slate, int32; 0: any number, and the default.
            diversities_B: What a slate's score loses for every two items that share their first code; default: 0.
            temperature: Draws slates without replacement instead (`model_export.search.sampled`); default: the best.
            seeds_B: Of the draws, int64 in [0, 2^32); default: 0, 1, ...

        Raises:
            ValueError: `allowed_cumsum_FN` has more elements than 32 bits number.
        """
        if allowed_cumsum_FN is not None and allowed_cumsum_FN.numel() >= 2**31:
            raise ValueError(f"{len(allowed_cumsum_FN)} filters of such a catalog do not fit one batch")
        num_requests, device = len(history.lengths_B), self.generator.start_D.device
        has_caps = group_limits_B is not None and bool(group_limits_B.any())
        num_capped = self.generator.spec.slate_size if has_caps else 1
        given = {
            "excluded_rows": excluded_rows_BX,
            "filter_slots": filter_slots_B,
            "allowed_cumsum": allowed_cumsum_FN,
            "group_limits": group_limits_B,
            "diversities": diversities_B,
        }
        inputs = {
            **self._inputs,
            **dict(zip(HISTORY_INPUTS, history.as_args(), strict=True)),
            **self._vectors(history),
            **self._defaults(num_requests),
            **{name: tensor for name, tensor in given.items() if tensor is not None},
            "beam_slots": torch.zeros(beam_width, dtype=torch.int32, device=device),
            "cap_slots": torch.zeros(num_capped, dtype=torch.int32, device=device),
        }
        search: Callable[..., dict[str, Tensor]] = run_search
        if temperature is not None:
            search = run_sampler
            seeds_B = torch.arange(num_requests) if seeds_B is None else seeds_B
            words_BS = torch.from_numpy(seed_words(seeds_B.cpu().numpy()))
            inputs["seed_words"] = words_BS.to(device)
            inputs["temperatures"] = torch.full((num_requests,), temperature, device=device)
        spec = self.generator.spec
        was_training = self.generator.training
        self.generator.eval()
        out = search(self._pieces, inputs, self.generator, num_items or spec.slate_size)
        self.generator.train(was_training)
        return Slates(
            item_rows_BWK=out["item_rows"],
            item_valid_BWK=out["item_valid"],
            level_logprobs_BWKL=out["level_logprobs"],
            scores_BW=out["scores"],
            item_rewards_BWK=out.get(ITEM_REWARDS),
            level_log_propensities_BWKL=out.get(LEVEL_PROPENSITIES),
        )

    def _defaults(self, num_requests: int) -> dict[str, Tensor]:
        """Nothing excluded, nothing filtered but what is not available, no cap, no penalty."""
        device = self.generator.start_D.device
        return {
            "excluded_rows": torch.full((num_requests, 1), -1, dtype=torch.int32, device=device),
            "filter_slots": torch.zeros(num_requests, dtype=torch.int32, device=device),
            # A copy, because the catalog's cached array is read-only and torch would warn.
            "allowed_cumsum": torch.from_numpy(self.catalog.allowed_cumsum().copy())[None].to(device),
            "group_limits": torch.zeros(num_requests, dtype=torch.int32, device=device),
            "diversities": torch.zeros(num_requests, device=device),
        }

    def _vectors(self, history: HistoryBatch) -> dict[str, Tensor]:
        """The rows of the histories and the nodes' vectors: the catalog's where it brings them, else as trained."""
        items = self.generator.items
        if items is None and not self._has_reward:
            return {}
        assert history.rows_BT is not None
        if items is None:
            return {HISTORY_ROWS: history.rows_BT}
        device = self.generator.start_D.device
        if self.catalog.child_vectors:
            tables = [torch.from_numpy(table_MD).to(device) for table_MD in self.catalog.child_vectors]
        else:
            tables = items.of_children(items())
        return {HISTORY_ROWS: history.rows_BT, **dict(zip(vector_inputs(len(tables)), tables, strict=True))}


class EagerPieces:
    """Runs the pieces as they are."""

    def __init__(self, generator: Generator, max_branch: tuple[int, ...], reward: nn.Module | None = None) -> None:
        self._modules = make_pieces(generator, reward)
        self._generator = generator
        self._max_branch = max_branch

    def run(self, piece: str, *values: Tensor, of: int = 0) -> tuple[Tensor, ...]:
        """Runs one piece."""
        out = self._modules[piece][of](*values)
        return (out,) if isinstance(out, Tensor) else out

    def parameter(self, name: str, *index: int) -> Tensor:
        """See `Pieces.parameter`."""
        return search_parameter(self._generator, self._max_branch, name, *index)


def search_parameter(generator: Generator, max_branch: tuple[int, ...], name: str, *index: int) -> Tensor:
    """The tensor behind each name of `Pieces.parameter`."""
    level = index[-1]
    match name:
        case "code_table":
            return generator.code_tables[level].weight
        case "head":
            return generator.heads[level].get_parameter("weight")
        case "head_bias":
            return generator.heads[level].get_parameter("bias")
        case "query" | "query_bias" | "scale":
            return _query_parameter(generator, name, level)
        case "offset":
            return generator.position_offset(*index)
        case _:
            constant = _search_constant(generator, max_branch, name, *index)
            return constant.to(generator.start_D.device)


def _search_constant(generator: Generator, max_branch: tuple[int, ...], name: str, *index: int) -> Tensor:
    spec, level = generator.spec, index[-1]
    constants: dict[str, Callable[[], Tensor]] = {
        # Bounds of candidates, one more than there are: an empty one first and, in the fullest node, one last.
        "branch": lambda: torch.arange(-1, max_branch[level] + 2, dtype=torch.int32).clamp(min=0),
        "chosen": lambda: torch.arange(index[0] + 1) * spec.num_levels + level,
        "codes": lambda: torch.arange(spec.codebook_sizes[level], dtype=torch.int32).view(1, 1, -1),
        "codes_and_one": lambda: torch.arange(spec.codebook_sizes[level] + 1, dtype=torch.int32),
        "level": lambda: torch.tensor([level], dtype=torch.int64),
        "num_missing": lambda: torch.tensor(float(spec.slate_size - index[0])),
        "place": lambda: torch.tensor([index[0]], dtype=torch.int64),
        "ranks": lambda: torch.arange(index[0], dtype=torch.int32),
    }
    return constants[name]()


def _query_parameter(generator: Generator, name: str, level: int) -> Tensor:
    assert generator.affinity is not None
    if name == "scale":
        return generator.affinity.log_scale_L[level].exp()
    layer = generator.affinity.from_hidden[level]
    return layer.get_parameter("weight" if name == "query" else "bias")
