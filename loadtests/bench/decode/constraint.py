"""What the constraint costs: a step that keeps to the catalog's trie, filter and exclusions, beside one that does not.

Both steps run the same network and choose the best of all beams' codes. The constrained one is made of the pieces of
the exported graph, `step` (`root_step` at an item's first code) and `select`, with weights as weights and everything
else as inputs, on what a search of this catalog really gives them. The free one scores and ranks the whole codebook and
looks at no catalog.

Legend: B requests, W beams in, U beams out, V codes of a level, X codes of all beams, D width, N beams of all requests.
"""

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import compose, numpy_helper
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from loadtests.bench.decode.graphs import Feeds, feeds_of, in_onnx_runtime
from loadtests.bench.decode.timing import System, interleaved, medians
from loadtests.bench.decode.workload import DecodeWorkload, Measured
from loadtests.bench.errors import BenchError
from loadtests.bench.result import Row
from model_export.model import Generator
from model_export.onnx.pieces import export_module, export_pieces
from model_export.search.driver import Search
from model_export.search.eager import EagerPieces
from model_export.search.pieces import Step, pairs

CONSTRAINED, FREE = "constrained", "unconstrained"
_NUM_STEP_INPUTS = len(inspect.signature(Step.forward).parameters) - 2
"""Of the piece `step`, before the suffix and the context; the last two are the codebook's weights and biases."""


class FreeStep(nn.Module):
    """The piece `step` without a catalog, and the choice of the best codes."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.decoder = generator.decoder

    def forward(
        self, x_BWD: Tensor, bias: Tensor, score_BW: Tensor, beams_U: Tensor, head_VD: Tensor, head_bias_V: Tensor,
        *layers: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Returns score, parent, code and logprob, each [B, U], best first, and the grown suffix."""
        half = len(layers) // 2
        hidden_ND, suffix = self.decoder.step(x_BWD.flatten(0, 1), pairs(layers[:half]), pairs(layers[half:]), bias)
        logits_BWV = F.linear(hidden_ND, head_VD, head_bias_V).unflatten(0, (bias.shape[0], -1))
        logprob_BX = logits_BWV.log_softmax(-1).flatten(1)
        total_BX = (score_BW.unsqueeze(-1) + logprob_BX.view_as(logits_BWV)).flatten(1)
        score_BU, place_BU = total_BX.topk(beams_U.shape[0], dim=1)
        parent_BU = torch.div(place_BU, head_VD.shape[0], rounding_mode="trunc")
        code_BU = place_BU - parent_BU * head_VD.shape[0]
        return (score_BU, parent_BU, code_BU, logprob_BX.gather(1, place_BU), *[one for pair in suffix for one in pair])


@dataclass(frozen=True, kw_only=True)
class Constraint(DecodeWorkload):
    """Milliseconds of a step of each kind, by level; `codebook_size` is the first codebook."""

    more_codebook_sizes: tuple[int, ...]
    """The others."""
    position: int
    """In the slate, from 0: the item whose codes are measured; not the first, which begins with one beam."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.position < self.slate_size:
            raise ValueError(f"{self.name}: position must lie in 1..{self.slate_size - 1}, not {self.position}")

    def measure(self, console: Console) -> Measured:
        """Rows by codebook, shape and level; the constrained step's time over the free one's."""
        torch.set_num_threads(self.num_threads)
        rows: list[Row] = []
        ratios: dict[str, float] = {}
        for size in (self.codebook_size, *self.more_codebook_sizes):
            workload = replace(self, codebook_size=size)
            console.print(f"{self.name}: {size} codes: exporting", highlight=False)
            steps = Steps(workload)
            for shape in self.shapes:
                of_shape = f"{size} codes, beam {shape[0]}, batch {shape[1]}"
                label = f"{self.name}, {of_shape}"
                console.print(label, highlight=False)
                times_s = medians(interleaved(self.num_rounds, steps.systems(*shape), window_s=0))
                for name, value in times_s.items():
                    system, level = name.split(", ")
                    rows.append(Row(workload=f"{label}, {level}", system=system, value=value * 1000, unit="ms a step"))
                total_s = {
                    kind: sum(value for name, value in times_s.items() if name.startswith(f"{kind},"))
                    for kind in (CONSTRAINED, FREE)
                }
                for kind, value in total_s.items():
                    rows.append(Row(workload=label, system=kind, value=value * 1000, unit="ms an item"))
                ratios[f"time, {CONSTRAINED} over {FREE}, {of_shape}"] = total_s[CONSTRAINED] / total_s[FREE]
        caveat = (
            f"medians of {self.num_rounds} single steps of each kind, in turn, {self.num_threads} threads, random "
            f"weights and sids, {self.num_excluded} rows excluded; an item is the sum over its levels; what follows a "
            "choice (suffixes inherited, repeated sets dropped) is in neither"
        )
        return Measured(rows=rows, ratios=ratios, caveat=caveat)


class Steps:
    """Both kinds of step of one workload as loaded graphs, with inputs from a real search."""

    def __init__(self, workload: Constraint) -> None:
        self._workload = workload
        self._generator, self._catalog = workload.generator(), workload.catalog()
        self._pieces = export_pieces(self._generator)
        # Two searches that differ in every size, as for the pieces themselves: what varies is dynamic.
        shorter = replace(workload, history_length=workload.history_length - 1)
        recorded = [self.recorded(workload, 6, 3), self.recorded(shorter, 8, 4)]
        calls = [_free_arguments(recorder, place) for recorder in recorded for place in self._places]
        self._free = export_module(FreeStep(self._generator), calls)

    @property
    def _places(self) -> range:
        """The steps of the item, counted over the slate."""
        num_levels = self._workload.num_levels
        return range(self._workload.position * num_levels, (self._workload.position + 1) * num_levels)

    def systems(self, beam_width: int, batch_size: int) -> dict[str, System]:
        """By kind and level."""
        recorder = self.recorded(self._workload, beam_width, batch_size)
        systems: dict[str, System] = {}
        for level, place in enumerate(self._places):
            constrained = self._load(*self._constrained(recorder, place))
            score_BU = torch.from_numpy(constrained()[0])
            if not torch.allclose(score_BU, recorder.best(place), atol=1e-3):
                raise BenchError("the constrained step does not choose what the search chooses")
            systems[f"{CONSTRAINED}, level {level}"] = constrained
            systems[f"{FREE}, level {level}"] = self._load(*self._unconstrained(recorder, place))
        return systems

    def recorded(self, workload: Constraint, beam_width: int, batch_size: int) -> "Recorder":
        """A search up to the item's end."""
        feeds = feeds_of(workload, self._catalog, beam_width, batch_size)
        recorder = Recorder(self._generator, self._catalog.trie.max_branch)
        inputs = {name: torch.from_numpy(value.copy()) for name, value in feeds.items()}
        with torch.inference_mode():
            Search(recorder, inputs, workload.position + 1, workload.num_levels).run()
        return recorder

    def _constrained(self, recorder: "Recorder", place: int) -> tuple[onnx.ModelProto, Feeds]:
        piece, arguments = recorder.steps[place]
        step, select = (compose.add_prefix(self._pieces[name], f"{name}/") for name in (piece, "select"))
        chained = [(step.graph.output[number].name, select.graph.input[number].name) for number in range(3)]
        grown = [output.name for output in step.graph.output[3:]]
        chosen = [output.name for output in select.graph.output]
        model = compose.merge_models(step, select, io_map=chained, outputs=chosen + grown)
        model.graph.output.sort(
            key=lambda output: (chosen + grown).index(output.name)
        )  # score first, as in the free one
        names = [entry.name for entry in step.graph.input] + [select.graph.input[3].name]
        given = dict(zip(names, (*arguments, recorder.beams(place)), strict=True))
        return _with_weights(model, given, recorder)

    def _unconstrained(self, recorder: "Recorder", place: int) -> tuple[onnx.ModelProto, Feeds]:
        model = onnx.ModelProto()
        model.CopyFrom(self._free)
        names = [entry.name for entry in model.graph.input]
        return _with_weights(model, dict(zip(names, _free_arguments(recorder, place), strict=True)), recorder)

    def _load(self, model: onnx.ModelProto, feeds: Feeds) -> Callable[[], Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step.onnx"
            onnx.save(model, str(path))
            return partial(in_onnx_runtime(path, self._workload.num_threads).run, None, feeds)


class Recorder(EagerPieces):
    """Runs the pieces, and keeps what they are called with."""

    def __init__(self, generator: Generator, max_branch: tuple[int, ...]) -> None:
        super().__init__(generator, max_branch)
        self.steps: list[tuple[str, tuple[Tensor, ...]]] = []
        """The piece of each step, which differs at the root, and its arguments."""
        self._chosen: list[Tensor] = []
        self._parameters: list[Tensor] = []

    def run(self, piece: str, *values: Tensor) -> tuple[Tensor, ...]:
        out = super().run(piece, *values)
        if piece in {"step", "root_step"}:
            self.steps.append((piece, values))
        if piece == "select":
            self._chosen.append(out[0])
        return out

    def parameter(self, name: str, *index: int) -> Tensor:
        self._parameters.append(super().parameter(name, *index))
        return self._parameters[-1]

    def is_parameter(self, value: Tensor) -> bool:
        """Whether it is of the model, and so a weight of the graph."""
        return any(value is parameter for parameter in self._parameters)

    def beams(self, place: int) -> Tensor:
        """One entry a beam; the search chooses twice as many where repeated sets are dropped afterwards."""
        return torch.zeros(self.steps[place][1][2].shape[1], dtype=torch.int32)

    def best(self, place: int) -> Tensor:
        """Scores [B, U] that the search chose."""
        return self._chosen[place][:, : len(self.beams(place))]


def _free_arguments(recorder: Recorder, place: int) -> tuple[Tensor, ...]:
    step = recorder.steps[place][1]
    return (*step[:3], recorder.beams(place), *step[_NUM_STEP_INPUTS - 2 :])


def _with_weights(
    model: onnx.ModelProto, arguments: dict[str, Tensor], recorder: Recorder
) -> tuple[onnx.ModelProto, Feeds]:
    """The model's parameters as weights of the graph, the rest as what it is fed."""
    weights = {name: value for name, value in arguments.items() if recorder.is_parameter(value)}
    inputs = [entry for entry in model.graph.input if entry.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(numpy_helper.from_array(value.numpy(), name) for name, value in weights.items())
    return model, {name: value.numpy() for name, value in arguments.items() if name not in weights}
