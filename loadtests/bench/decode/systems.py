"""The systems that the decoder bench compares: each turns the same number of histories into slates.

Legend: B batch, T history length, L levels, W beams, K slate size, X excluded rows, N items.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from loadtests.bench.decode.graphs import Feeds, export_graph, feeds_of, in_onnx_runtime
from loadtests.bench.decode.timing import interleaved, medians
from loadtests.bench.decode.workload import DecodeWorkload
from model_export.model.generator import Generator
from model_export.search.eager import BeamSearch
from service.bundle.manifest import Precision
from service.catalog import CatalogSnapshot
from service.inference.openvino_runner import compile_graph, has_bfloat16

ONNX_RUNTIME = "onnxruntime float32"
OPENVINO: dict[str, Precision] = {"openvino float32": "float32", "openvino bfloat16": "bfloat16"}
FLOAT32 = (ONNX_RUNTIME, "openvino float32")
Decoder = Callable[[], torch.Tensor]
"""Decodes one batch and returns the best slates [B, K], as rows or codes, so that nothing can be left undone."""
Engine = Callable[[Feeds], npt.NDArray[np.int32]]
"""A loaded graph: from its inputs to the item rows [B, W, K]."""


def engines() -> tuple[str, ...]:
    """Those that run graphs here, the reference first."""
    return (ONNX_RUNTIME, *OPENVINO) if has_bfloat16() else FLOAT32


def load_engine(engine: str, path: Path, num_threads: int) -> Engine:
    """Loads the graph into one of `engines`."""
    if engine == ONNX_RUNTIME:
        ort_session = in_onnx_runtime(path, num_threads)
        return lambda feeds: np.asarray(ort_session.run(["item_rows"], feeds)[0])
    request = compile_graph(path, OPENVINO[engine], num_threads).create_infer_request()
    return lambda feeds: np.array(request.infer(feeds, share_inputs=True, share_outputs=True)["item_rows"])


class Exported:
    """Our graph in every engine that runs it here."""

    def __init__(
        self,
        workload: DecodeWorkload,
        generator: Generator,
        catalog: CatalogSnapshot,
        folder: Path,
        *,
        num_loads: int,
    ) -> None:
        """Exports once, into the folder; loads so often, and once before, into each engine, and keeps the last."""
        self._workload, self._catalog = workload, catalog
        self._engines: dict[str, Engine] = {}
        self.graph = export_graph(generator, catalog.trie.max_branch, folder)
        loads = {name: partial(self._load, name) for name in engines()}
        self.load_s = medians(interleaved(num_loads, loads, window_s=0))
        """Seconds by engine; the file is in the system's cache."""

    def _load(self, engine: str) -> None:
        self._engines.pop(engine, None)
        self._engines[engine] = load_engine(engine, self.graph.path, self._workload.num_threads)

    def feeds(self, beam_width: int, batch_size: int) -> Feeds:
        """Of the workload's histories against its catalog."""
        return feeds_of(self._workload, self._catalog, beam_width, batch_size)

    def decoders(self, beam_width: int, batch_size: int) -> dict[str, Decoder]:
        """By engine; each decodes the workload's histories."""
        feeds = self.feeds(beam_width, batch_size)

        def decoder(engine: Engine) -> Decoder:
            return lambda: torch.from_numpy(engine(feeds)[:, 0])

        return {name: decoder(engine) for name, engine in self._engines.items()}


class Eager:
    """The same search in PyTorch."""

    def __init__(self, workload: DecodeWorkload, generator: Generator, catalog: CatalogSnapshot) -> None:
        self._workload, self._catalog = workload, catalog
        self._search = BeamSearch(generator, catalog)

    def decoder(self, beam_width: int, batch_size: int) -> Decoder:
        """Decodes the workload's histories."""
        history = self._workload.history(self._catalog.sids_NL, batch_size)
        excluded_BX = torch.from_numpy(self._workload.excluded_rows(self._catalog.num_items, batch_size))
        return lambda: self._search.decode(history, beam_width=beam_width, excluded_rows_BX=excluded_BX).item_rows_BWK[
            :, 0
        ]


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

    def decoder(self, beam_width: int, batch_size: int) -> Decoder:
        """Decodes as many histories of as many tokens; nothing is excluded."""
        length = self._workload.history_length
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
                    num_beams=beam_width,
                    num_return_sequences=beam_width,
                    max_new_tokens=self._workload.num_levels,
                    min_new_tokens=self._workload.num_levels,
                    do_sample=False,
                    prefix_allowed_tokens_fn=allowed,
                )
            return out[::beam_width, 1:]

        return decode
