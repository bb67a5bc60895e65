"""The beam search on tensors: for evaluation, for rollouts, and as the reference of the exported graph.

Legend: B requests, T history, L levels, W beams, K items, X excluded rows, F filter slots, N items.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model_export.model import Generator, HistoryBatch
from model_export.search.driver import HISTORY_INPUTS, HISTORY_ROWS, Search, vector_inputs
from model_export.search.pieces import make_pieces
from service.catalog import CatalogSnapshot


@dataclass(frozen=True, kw_only=True)
class Slates:
    """Candidate slates of each request, best first; fields as in `service.inference.runner.Decoded`."""

    item_rows_BWK: Tensor
    item_valid_BWK: Tensor
    level_logprobs_BWKL: Tensor
    scores_BW: Tensor


class BeamSearch:
    """Decodes slates with one generator against one catalog snapshot."""

    def __init__(self, generator: Generator, catalog: CatalogSnapshot) -> None:
        self.generator = generator
        self.catalog = catalog
        device = generator.start_D.device
        trie = catalog.trie
        self._inputs = {"sids": torch.from_numpy(catalog.sids_NL).to(device)}
        for level in range(generator.spec.num_levels):
            self._inputs[f"child_begin_{level}"] = torch.from_numpy(trie.child_begin[level]).to(device)
            self._inputs[f"child_code_{level}"] = torch.from_numpy(trie.child_code[level]).to(device)
            self._inputs[f"child_row_{level}"] = torch.from_numpy(trie.child_row[level]).to(device)
        self._pieces = EagerPieces(generator, trie.max_branch)

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
    ) -> Slates:
        """Writes slates of `num_items` items (default: the generator's slate size).

        Args:
            history: The users' histories.
            beam_width: W.
            num_items: At most the generator's slate size.
            excluded_rows_BX: Rows that must not appear, padded with -1.
            filter_slots_B: Row of `allowed_cumsum_FN` for each request.
            allowed_cumsum_FN: [F, N + 1]; default: the catalog's available items.
        """
        device = self.generator.start_D.device
        num_requests = len(history.lengths_B)
        if allowed_cumsum_FN is None:
            # A copy, because the catalog's cached array is read-only and torch would warn.
            allowed_cumsum_FN = torch.from_numpy(self.catalog.allowed_cumsum().copy())[None].to(device)
        if filter_slots_B is None:
            filter_slots_B = torch.zeros(num_requests, dtype=torch.int32, device=device)
        if excluded_rows_BX is None:
            excluded_rows_BX = torch.full((num_requests, 1), -1, dtype=torch.int32, device=device)
        inputs = dict(self._inputs)
        inputs.update(zip(HISTORY_INPUTS, history.as_args(), strict=True))
        inputs.update(
            excluded_rows=excluded_rows_BX,
            filter_slots=filter_slots_B,
            allowed_cumsum=allowed_cumsum_FN,
            beam_slots=torch.zeros(beam_width, dtype=torch.int32, device=device),
        )
        inputs.update(self._vectors(history))
        spec = self.generator.spec
        was_training = self.generator.training
        self.generator.eval()
        out = Search(self._pieces, inputs, num_items or spec.slate_size, spec.num_levels).run()
        self.generator.train(was_training)
        return Slates(
            item_rows_BWK=out["item_rows"],
            item_valid_BWK=out["item_valid"],
            level_logprobs_BWKL=out["level_logprobs"],
            scores_BW=out["scores"],
        )

    def _vectors(self, history: HistoryBatch) -> dict[str, Tensor]:
        """The rows of the histories and the nodes' vectors: the catalog's where it brings them, else as trained."""
        items = self.generator.items
        if items is None:
            return {}
        assert history.rows_BT is not None
        device = self.generator.start_D.device
        if self.catalog.child_vectors:
            tables = [torch.from_numpy(table_MD).to(device) for table_MD in self.catalog.child_vectors]
        else:
            tables = items.of_children(items())
        return {HISTORY_ROWS: history.rows_BT, **dict(zip(vector_inputs(len(tables)), tables, strict=True))}


class EagerPieces:
    """Runs the pieces as they are."""

    def __init__(self, generator: Generator, max_branch: tuple[int, ...]) -> None:
        self._modules = make_pieces(generator)
        self._generator = generator
        self._max_branch = max_branch

    def run(self, piece: str, *values: Tensor) -> tuple[Tensor, ...]:
        """Runs one piece."""
        out = self._modules[piece](*values)
        return (out,) if isinstance(out, Tensor) else out

    def parameter(self, name: str, *index: int) -> Tensor:
        """See `Pieces.parameter`."""
        return search_parameter(self._generator, self._max_branch, name, *index)


def search_parameter(generator: Generator, max_branch: tuple[int, ...], name: str, *index: int) -> Tensor:
    """The tensor behind each name of `Pieces.parameter`."""
    device = generator.start_D.device
    level = index[-1]
    match name:
        case "code_table":
            tensor = generator.code_tables[level].weight
        case "head":
            tensor = generator.heads[level].get_parameter("weight")
        case "head_bias":
            tensor = generator.heads[level].get_parameter("bias")
        case "query" | "query_bias" | "scale":
            tensor = _query_parameter(generator, name, level)
        case "offset":
            tensor = generator.position_offset(*index)
        case "branch":
            tensor = torch.arange(max_branch[level], dtype=torch.int32, device=device)
        case "level":
            tensor = torch.tensor([level], dtype=torch.int64, device=device)
        case "position":
            tensor = torch.tensor(index[0], dtype=torch.int32, device=device)
        case _:
            raise AssertionError(name)
    return tensor


def _query_parameter(generator: Generator, name: str, level: int) -> Tensor:
    assert generator.affinity is not None
    if name == "scale":
        return generator.affinity.log_scale_L[level].exp()
    layer = generator.affinity.from_hidden[level]
    return layer.get_parameter("weight" if name == "query" else "bias")
