"""The systems that the decoder bench compares: each turns the same number of histories into slates.

Legend: B batch, T history length, L levels, W beams.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from loadtests.bench.decode_workload import DecodeWorkload
from model_export.model import Generator, HistoryBatch
from model_export.onnx.assemble import assemble
from model_export.onnx.export import save_graph
from model_export.onnx.pieces import export_pieces
from model_export.search import BeamSearch
from model_export.search.driver import HISTORY_INPUTS
from service.catalog import CatalogSnapshot
from service.inference.ort_runner import trie_feeds

System = Callable[[], torch.Tensor]
"""Decodes one batch and returns the best first codes or rows, so that nothing can be left undone."""


class Graph:
    """Our exported graph in ONNX Runtime."""

    def __init__(self, workload: DecodeWorkload, generator: Generator, catalog: CatalogSnapshot) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = workload.num_threads
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "generator.onnx"
            model = assemble(generator, export_pieces(generator), catalog.trie.max_branch)
            self.num_nodes = len(model.graph.node)
            save_graph(model, path)
            self._ort_session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._catalog = catalog
        self._beam_width = workload.beam_width

    def system(self, history: HistoryBatch) -> System:
        """Decodes `history`."""
        batch_size = len(history.lengths_B)
        feeds = {name: value.numpy() for name, value in zip(HISTORY_INPUTS, history.as_args(), strict=True)}
        feeds |= {
            "excluded_rows": np.full((batch_size, 1), -1, dtype=np.int32),
            "filter_slots": np.zeros(batch_size, dtype=np.int32),
            "allowed_cumsum": self._catalog.allowed_cumsum()[None],
            "beam_slots": np.zeros(self._beam_width, dtype=np.int32),
            **trie_feeds(self._catalog),
        }
        return lambda: torch.from_numpy(self._ort_session.run(["item_rows"], feeds)[0][:, 0])


class Eager:
    """The same search in PyTorch."""

    def __init__(self, workload: DecodeWorkload, generator: Generator, catalog: CatalogSnapshot) -> None:
        self._search = BeamSearch(generator, catalog)
        self._beam_width = workload.beam_width

    def system(self, history: HistoryBatch) -> System:
        """Decodes `history`."""
        return lambda: self._search.decode(history, beam_width=self._beam_width).item_rows_BWK[:, 0]


class HuggingFace:
    """T5 `generate` with `prefix_allowed_tokens_fn`: what a user builds today.

    The callback is one dictionary look-up by the codes so far; its lists are made beforehand. One encoder token per
    event, as ours has one vector per event, and the same layers, widths and heads.
    """

    _PAD, _NUM_SPECIAL = 0, 1

    def __init__(self, workload: DecodeWorkload, catalog: CatalogSnapshot) -> None:
        transformers_logging.set_verbosity_error()
        torch.manual_seed(workload.seed)
        model = workload.model
        size = workload.codebook_size
        self._workload = workload
        self._model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=self._NUM_SPECIAL + workload.num_levels * size,
                d_model=model.width,
                d_kv=model.head_width,
                num_heads=model.num_heads,
                d_ff=model.feed_forward_width,
                num_layers=model.encoder_layers,
                num_decoder_layers=model.decoder_layers,
                feed_forward_proj="relu",
                pad_token_id=self._PAD,
                decoder_start_token_id=self._PAD,
                eos_token_id=None,
            )
        ).eval()
        tokens_NL = catalog.sids_NL + self._NUM_SPECIAL + size * np.arange(workload.num_levels)
        allowed: dict[tuple[int, ...], set[int]] = {}
        for tokens in tokens_NL.tolist():
            for level in range(workload.num_levels):
                allowed.setdefault(tuple(tokens[:level]), set()).add(tokens[level])
        self._allowed = {prefix: sorted(codes) for prefix, codes in allowed.items()}
        self._tokens_NL = torch.from_numpy(tokens_NL).long()

    def system(self, history: HistoryBatch) -> System:
        """Decodes as many histories of as many tokens."""
        batch_size, length, _ = history.codes_BTL.shape
        rng = torch.Generator().manual_seed(self._workload.seed)
        rows = torch.randint(0, len(self._tokens_NL), (batch_size, length), generator=rng)
        input_ids_BT = self._tokens_NL[rows, 0]
        mask_BT = torch.ones_like(input_ids_BT)

        def allowed(_batch: int, sent: torch.Tensor) -> list[int]:
            return self._allowed[tuple(sent[1:].tolist())]

        def decode() -> torch.Tensor:
            with torch.inference_mode():
                out: torch.Tensor = self._model.generate(
                    input_ids_BT,
                    attention_mask=mask_BT,
                    num_beams=self._workload.beam_width,
                    num_return_sequences=self._workload.beam_width,
                    max_new_tokens=self._workload.num_levels,
                    min_new_tokens=self._workload.num_levels,
                    do_sample=False,
                    prefix_allowed_tokens_fn=allowed,
                )
            return out[:: self._workload.beam_width, 1:]

        return decode
