"""Exports each piece of the search once.

Which dimensions are dynamic is not declared but observed: the search runs on two small problems that differ in every
size, and a dimension that varies between any two calls of a piece is dynamic.
"""

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from model_export.model import Generator, HistoryBatch
from model_export.search.driver import HISTORY_INPUTS, HISTORY_ROWS, ITEM_EMBEDDINGS, vector_inputs
from model_export.search.eager import search_parameter
from model_export.search.forced import FORCED_ROWS
from model_export.search.graphs import graph_plans
from model_export.search.pieces import make_pieces
from service.catalog import CatalogSnapshot
from service.domain import Item

if TYPE_CHECKING:
    # Brings the trainer's data libraries, which a machine that only exports (`loadtests.gpu`) need not have.
    from model_export.reward.graph import RewardGraph

OPSET = 20
_MIN_SAMPLE = 3
"""A dynamic dimension is shown to the exporter with at least this size: it takes 0 and 1 for constants."""


def export_pieces(generator: Generator, reward: "RewardGraph | None" = None) -> dict[str, onnx.ModelProto]:
    """Exports every piece that the graphs of this generator call, under the piece's name.

    With a reward model the generator's graph has rewards; it is in eval mode.
    """
    was_training = generator.training
    generator.eval()
    calls: dict[str, list[tuple[Tensor, ...]]] = {}
    for problem in (0, 1):
        _record_search(generator, reward, problem, calls)
    modules = make_pieces(generator, reward)
    exported = {name: export_module(modules[name], piece_calls) for name, piece_calls in calls.items()}
    generator.train(was_training)
    return exported


class _Recorder:
    """Runs the pieces eagerly and keeps the arguments of every call."""

    def __init__(
        self,
        generator: Generator,
        reward: "RewardGraph | None",
        catalog: CatalogSnapshot,
        calls: dict[str, list[tuple[Tensor, ...]]],
    ) -> None:
        self._generator = generator
        self._max_branch = catalog.trie.max_branch
        self._modules = make_pieces(generator, reward)
        self._calls = calls

    def run(self, piece: str, *values: Tensor) -> tuple[Tensor, ...]:
        self._calls.setdefault(piece, []).append(values)
        out = self._modules[piece](*values)
        return (out,) if isinstance(out, Tensor) else out

    def parameter(self, name: str, *index: int) -> Tensor:
        return search_parameter(self._generator, self._max_branch, name, *index)


@torch.no_grad()
def _record_search(
    generator: Generator, reward: "RewardGraph | None", problem: int, calls: dict[str, list[tuple[Tensor, ...]]]
) -> None:
    spec = generator.spec
    rng = np.random.default_rng(problem)
    catalog = _catalog(spec.codebook_sizes, (11, 17)[problem], rng)
    num_requests, length, num_filters, num_excluded, width = ((3, 5, 2, 4, 6), (4, 7, 3, 5, 8))[problem]
    history = HistoryBatch(
        codes_BTL=torch.full((num_requests, length, spec.num_levels), 2, dtype=torch.int32),
        actions_BT=torch.ones((num_requests, length), dtype=torch.int32),
        ages_BT=torch.zeros((num_requests, length), dtype=torch.int32),
        values_BT=torch.ones((num_requests, length)),
        lengths_B=torch.full((num_requests,), length, dtype=torch.int32),
    )
    inputs = dict(zip(HISTORY_INPUTS, history.as_args(), strict=True))
    cumsum = torch.from_numpy(catalog.allowed_cumsum().copy())
    inputs.update(
        excluded_rows=torch.full((num_requests, num_excluded), -1, dtype=torch.int32),
        filter_slots=torch.zeros(num_requests, dtype=torch.int32),
        allowed_cumsum=cumsum.expand(num_filters, -1).contiguous(),
        group_limits=torch.zeros(num_requests, dtype=torch.int32),
        cap_slots=torch.zeros(num_requests + 1, dtype=torch.int32),
        diversities=torch.zeros(num_requests),
        temperatures=torch.ones(num_requests),
        seed_words=torch.ones((num_requests, 3), dtype=torch.int32),
        sids=torch.from_numpy(catalog.sids_NL),
        beam_slots=torch.zeros(width, dtype=torch.int32),
    )
    for level in range(spec.num_levels):
        inputs[f"child_begin_{level}"] = torch.from_numpy(catalog.trie.child_begin[level])
        inputs[f"child_code_{level}"] = torch.from_numpy(catalog.trie.child_code[level])
        inputs[f"child_row_{level}"] = torch.from_numpy(catalog.trie.child_row[level])
        inputs[f"child_group_{level}"] = torch.from_numpy(catalog.child_groups[level])
    inputs[FORCED_ROWS] = torch.zeros((num_requests, spec.slate_size), dtype=torch.int32)
    inputs[HISTORY_ROWS] = torch.zeros((num_requests, length), dtype=torch.int32)
    if reward is not None:
        inputs[ITEM_EMBEDDINGS] = torch.ones(catalog.num_items, reward.embedding_width)
    if generator.affinity is not None:
        for level, name in enumerate(vector_inputs(spec.num_levels)):
            num_children = len(catalog.trie.child_code[level])
            inputs[name] = torch.ones(num_children, generator.config.item_vector_width)
    # The generator's last: its many beams show more than the one of the other graphs, and the last call is the sample.
    for plan in reversed(graph_plans(generator, has_reward=reward is not None)):
        plan.run(_Recorder(generator, reward, catalog, calls), {name: inputs[name] for name in plan.inputs})


def _catalog(codebook_sizes: tuple[int, ...], most: int, rng: np.random.Generator) -> CatalogSnapshot:
    """A few random sids: as many as asked for, or fewer where the codebooks hold no more."""
    sids_NL = np.unique(np.stack([rng.integers(0, size, most) for size in codebook_sizes], 1), axis=0).astype(np.int32)
    return CatalogSnapshot.build([Item(item_id=str(row)) for row in range(len(sids_NL))], sids_NL)


def export_module(module: nn.Module, calls: list[tuple[Tensor, ...]]) -> onnx.ModelProto:
    """Exports one module; `calls`: arguments of several calls, which differ wherever a dimension is dynamic."""
    dynamic = [_varying_dims([call[place] for call in calls]) for place in range(len(calls[-1]))]
    sample = tuple(_grown(value, dims) for value, dims in zip(calls[-1], dynamic, strict=True))
    shapes = [dict.fromkeys(dims, torch.export.Dim.DYNAMIC) or None for dims in dynamic]
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            sample,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=_by_parameter(module, shapes),
            optimize=True,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _varying_dims(values: list[Tensor]) -> list[int]:
    return [dim for dim in range(values[0].ndim) if len({value.shape[dim] for value in values}) > 1]


def _grown(value: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        if value.shape[dim] < _MIN_SAMPLE:
            shape = [*value.shape]
            shape[dim] = _MIN_SAMPLE
            value = value.new_zeros(shape)
    return value


def _by_parameter(module: nn.Module, shapes: list[Any]) -> dict[str, Any]:
    """Groups the shapes by the names of `forward`'s parameters; what goes to `*rest` becomes one tuple."""
    grouped: dict[str, Any] = {}
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            if rest := tuple(shapes[len(grouped) :]):
                grouped[name] = rest
        else:
            grouped[name] = shapes[len(grouped)]
    return grouped


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress prints and its warnings about its own internals off the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
