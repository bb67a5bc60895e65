"""Exports each piece of the search once, its weights as inputs.

So the layers of a stack are one piece however many there are, and generators of one configuration share what was
exported for the first of them: a process exports a configuration once, and a machine with `KeptPieces`.

Which dimensions are dynamic is not declared but observed: the search runs on two small problems that differ in every
size, and a dimension that varies between any two calls of a piece is dynamic.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from model_export.model.generator import Generator, HistoryBatch
from model_export.onnx.kept import KeptPieces
from model_export.onnx.shapes import settle_shapes
from model_export.progress import Progress
from model_export.search.driver import HISTORY_INPUTS, HISTORY_ROWS, ITEM_EMBEDDINGS, vector_inputs
from model_export.search.eager import EagerPieces
from model_export.search.forced import FORCED_ROWS
from model_export.search.graphs import PURPOSES, graph_plans
from model_export.search.pieces import make_pieces
from service.bundle.manifest import Purpose
from service.catalog import CatalogSnapshot
from service.domain import Item

if TYPE_CHECKING:
    # Brings the trainer's data libraries, which a machine that only exports (`loadtests.gpu`) need not have.
    from model_export.reward.graph import RewardGraph

_Registry: Any = None
with contextlib.suppress(ImportError):
    from torch.onnx._internal.exporter._registration import ONNXRegistry as _Registry
_operators = lru_cache(_Registry.from_torchlib) if hasattr(_Registry, "from_torchlib") else None

OPSET = 20
_MIN_SAMPLE = 3
"""A dynamic dimension is shown to the exporter with at least this size: it takes 0 and 1 for constants."""


@dataclass(frozen=True)
class ExportedPiece:
    """A piece as nodes."""

    model: onnx.ModelProto
    """Takes the piece's arguments, and then its weights."""
    weights: tuple[str, ...]
    """Their names in the module."""

    def with_weights_of(self, module: nn.Module) -> onnx.ModelProto:
        """The piece as a graph of its own, which takes the arguments alone."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        weights = weights_of(module)
        taken = model.graph.input[len(model.graph.input) - len(self.weights) :]
        for place, name in zip(taken, self.weights, strict=True):
            array = weights[name].detach().cpu().numpy()
            model.graph.initializer.append(numpy_helper.from_array(array, place.name))
            model.graph.input.remove(place)
        return model


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name: what an exported piece takes after its arguments."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def export_pieces(
    generator: Generator,
    reward: "RewardGraph | None" = None,
    purposes: Collection[Purpose] = PURPOSES,
    *,
    kept: KeptPieces | None = None,
    progress: Progress | None = None,
) -> dict[str, ExportedPiece]:
    """Exports every piece that the graphs of this generator call, under the piece's name.

    Args:
        generator: Searched on small problems.
        reward: With it the generator's graph has rewards; in eval mode.
        purposes: The graphs wanted.
        kept: Pieces that need not be traced again, and where new ones go. None: all are traced, unless this process
            has traced them before.
        progress: Shows how many pieces are done; None: nobody looks.
    """
    was_training = generator.training
    generator.eval()
    calls: dict[str, list[tuple[Tensor, ...]]] = {}
    for problem in (0, 1):
        _record_search(generator, reward, problem, calls, purposes)
    modules = make_pieces(generator, reward)
    exported = {}
    with contextlib.nullcontext() if progress is None else progress.task("pieces", len(calls)) as task:
        for name, piece_calls in calls.items():
            exported[name] = export_module(modules[name][0], piece_calls, kept)
            if task is not None:
                task.advance()
    generator.train(was_training)
    return exported


class _Recorder(EagerPieces):
    """Runs the pieces eagerly and keeps the arguments of every call."""

    def __init__(
        self,
        generator: Generator,
        reward: "RewardGraph | None",
        max_branch: tuple[int, ...],
        calls: dict[str, list[tuple[Tensor, ...]]],
    ) -> None:
        super().__init__(generator, max_branch, reward)
        self._calls = calls

    def run(self, piece: str, *values: Tensor, of: int = 0) -> tuple[Tensor, ...]:
        self._calls.setdefault(piece, []).append(values)
        return super().run(piece, *values, of=of)


@torch.no_grad()
def _record_search(
    generator: Generator,
    reward: "RewardGraph | None",
    problem: int,
    calls: dict[str, list[tuple[Tensor, ...]]],
    purposes: Collection[Purpose],
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
    # Roomier than the catalog needs, and not alike in the two problems, however few codes there are.
    max_branch = tuple(branch + problem for branch in catalog.trie.max_branch)
    # The generator's last: its many beams show more than the one of the other graphs, and the last call is the sample.
    for plan in reversed(graph_plans(generator, has_reward=reward is not None, purposes=purposes)):
        plan.run(_Recorder(generator, reward, max_branch, calls), {name: inputs[name] for name in plan.inputs})


def _catalog(codebook_sizes: tuple[int, ...], most: int, rng: np.random.Generator) -> CatalogSnapshot:
    """A few random sids: as many as asked for, or fewer where the codebooks hold no more."""
    sids_NL = np.unique(np.stack([rng.integers(0, size, most) for size in codebook_sizes], 1), axis=0).astype(np.int32)
    return CatalogSnapshot.build([Item(item_id=str(row)) for row in range(len(sids_NL))], sids_NL)


class _WithWeights(nn.Module):
    """A module that is given its weights."""

    def __init__(self, module: nn.Module, num_values: int) -> None:
        super().__init__()
        # In a tuple, so that the exporter finds no weights of this module's own.
        self._module = (module,)
        self._names = tuple(weights_of(module))
        self._num_values = num_values

    def forward(self, *inputs: Tensor) -> Any:
        """The module's outputs."""
        weights = dict(zip(self._names, inputs[self._num_values :], strict=True))
        return torch.func.functional_call(self._module[0], weights, inputs[: self._num_values])


def export_module(module: nn.Module, calls: list[tuple[Tensor, ...]], kept: KeptPieces | None = None) -> ExportedPiece:
    """Exports one module; `calls`: arguments of several calls, which differ wherever a dimension is dynamic.

    A process traces what differs in nothing but weights once; with `kept` all processes together do, where the module's
    classes are of this package or of torch.
    """
    module.eval()
    dynamic = [_varying_dims([call[place] for call in calls]) for place in range(len(calls[-1]))]
    sample = tuple(_grown(value, dims) for value, dims in zip(calls[-1], dynamic, strict=True))
    weights = weights_of(module)
    traced = (_structure(module), *(_form(value, dims) for value, dims in zip(sample, dynamic, strict=True)))
    traced = (*traced, *((name, _form(value, [])) for name, value in weights.items()))
    if traced not in _exported:
        model = None if kept is None else kept.find(traced)
        if model is None:
            model = _traced(module, sample, dynamic, weights)
            if kept is not None:
                kept.keep(traced, model)
        _exported[traced] = ExportedPiece(model, tuple(weights))
    return _exported[traced]


_exported: dict[tuple[object, ...], ExportedPiece] = {}
"""By everything that a trace depends on."""


def _structure(module: nn.Module) -> object:
    """What a module is but for its tensors: classes and settings, all the way down.

    Settings are public attributes: what a trace depends on must not be private, or two modules would share a piece.
    """
    settings = tuple(
        (name, value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and not isinstance(value, Tensor)
    )
    children = tuple((name, _structure(child)) for name, child in module.named_children())
    return type(module), settings, children


def _form(value: Tensor, dynamic: list[int]) -> object:
    """Type and static sizes."""
    return value.dtype, tuple(None if dim in dynamic else size for dim, size in enumerate(value.shape))


def _traced(
    module: nn.Module, sample: tuple[Tensor, ...], dynamic: list[list[int]], weights: dict[str, Tensor]
) -> onnx.ModelProto:
    shapes = [dict.fromkeys(dims, torch.export.Dim.DYNAMIC) or None for dims in dynamic]
    with _quiet(), _registry_kept():
        program = torch.onnx.export(
            _WithWeights(module, len(sample)),
            (*sample, *(tensor.detach() for tensor in weights.values())),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes={"inputs": (*shapes, *[None] * len(weights))},
            optimize=True,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    settle_shapes(model)
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


@contextlib.contextmanager
def _registry_kept() -> Iterator[None]:
    """Lets the exporter keep its table of operators, which it makes anew for every export: a quarter of the time.

    It has no argument for that. Where a version of PyTorch keeps no such table, this does nothing.
    """
    if _operators is None:
        yield
        return
    made_anew = vars(_Registry)["from_torchlib"]
    _Registry.from_torchlib = staticmethod(_operators)
    try:
        yield
    finally:
        _Registry.from_torchlib = made_anew
