"""What the constraint costs: a step that keeps to the catalog's trie, filter and exclusions, beside one that does not.

Both steps run the same layers and choose the best of all beams' codes. The constrained one is made of the pieces of
the exported graph that score and choose a code, with weights as weights and everything else as inputs, on what a search
of this catalog really gives them. The free one scores and ranks the whole codebook and looks at no catalog.

Legend: B requests, W beams in, U beams out, V codes of a level, X codes of all beams, D width, N beams of all requests.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from loadtests.bench.decode.graphs import Feeds, feeds_of, in_onnx_runtime
from loadtests.bench.decode.timing import System, interleaved, medians
from loadtests.bench.decode.workload import DecodeWorkload, Measured
from loadtests.bench.errors import BenchError
from loadtests.bench.result import Row
from model_export.model.generator import Generator
from model_export.onnx.assemble import NamedPieces
from model_export.onnx.pieces import export_module, export_pieces
from model_export.search.driver import run_search
from model_export.search.eager import EagerPieces
from model_export.search.pieces import make_pieces

CONSTRAINED, FREE = "constrained", "unconstrained"
_CHOICES = ("select_root", "select")
_BEAMS = 6
"""The place among the arguments of a choice of what gives the number of beams."""


class FreeChoice(nn.Module):
    """The best codes of all beams, without a catalog."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.norm = generator.decoder.norm

    def forward(
        self, x_ND: Tensor, score_BW: Tensor, beams_U: Tensor, head_VD: Tensor, head_bias_V: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns score, parent, code and logprob, each [B, U], best first."""
        logits_NV = F.linear(self.norm(x_ND), head_VD, head_bias_V)
        logprob_BWV = logits_NV.log_softmax(-1).unflatten(0, (score_BW.shape[0], -1))
        score_BU, place_BU = (score_BW.unsqueeze(-1) + logprob_BWV).flatten(1).topk(beams_U.shape[0], dim=1)
        parent_BU = torch.div(place_BU, head_VD.shape[0], rounding_mode="trunc")
        code_BU = place_BU - parent_BU * head_VD.shape[0]
        return score_BU, parent_BU, code_BU, logprob_BWV.flatten(1).gather(1, place_BU)


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
            "choice (suffixes inherited, repeated sets dropped) and what is counted once a run is in neither"
        )
        return Measured(rows=rows, ratios=ratios, caveat=caveat)


class Steps:
    """Both kinds of step of one workload as loaded graphs, with inputs from a real search."""

    def __init__(self, workload: Constraint) -> None:
        self._workload = workload
        self._generator, self._catalog = workload.generator(), workload.catalog()
        free = FreeChoice(self._generator)
        recorded = [self.recorded(*shape) for shape in ((6, 3), (8, 4))]
        calls = [_free_arguments(recorder, step) for recorder in recorded for step in recorder.steps]
        self._modules = {**make_pieces(self._generator), "free": (free,)}
        self._pieces = {**export_pieces(self._generator), "free": export_module(free, calls)}

    def systems(self, beam_width: int, batch_size: int) -> dict[str, System]:
        """By kind and level."""
        systems: dict[str, System] = {}
        recorder = self.recorded(beam_width, batch_size)
        for level, step in enumerate(recorder.steps):
            constrained = self._load(step, recorder, self._constrained)
            best_BU = step[-1].outputs[0][:, :beam_width]
            if not torch.allclose(torch.from_numpy(constrained()[0]), best_BU, atol=1e-3):
                raise BenchError("the constrained step does not choose what the search chooses")
            systems[f"{CONSTRAINED}, level {level}"] = constrained
            systems[f"{FREE}, level {level}"] = self._load(step, recorder, self._unconstrained)
        return systems

    def recorded(self, beam_width: int, batch_size: int) -> "Recorder":
        """A search up to the item's end."""
        workload = self._workload
        feeds = feeds_of(workload, self._catalog, beam_width, batch_size)
        inputs = {name: torch.from_numpy(value.copy()) for name, value in feeds.items()}
        recorder = Recorder(self._generator, self._catalog.trie.max_branch, inputs["beam_slots"])
        with torch.inference_mode():
            run_search(recorder, inputs, self._generator, workload.position + 1)
        first = workload.position * workload.num_levels
        recorder.steps = recorder.steps[first : first + workload.num_levels]
        return recorder

    def _load(self, step: "Step", recorder: "Recorder", kind: Callable[..., tuple[str, ...]]) -> Callable[[], Any]:
        named = NamedPieces(self._generator, self._modules, self._pieces, self._catalog.trie.max_branch)
        replay = Replay(named, recorder)
        x, grown = replay.layers(step)
        outputs = (*kind(replay, step, x), *grown)
        model, feeds = replay.model(outputs)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step.onnx"
            onnx.save(model, str(path))
            return partial(in_onnx_runtime(path, self._workload.num_threads).run, None, feeds)

    def _constrained(self, replay: "Replay", step: "Step", x: str) -> tuple[str, ...]:
        score, choice = step[-2:]
        replay.run(score, x, *replay.names(score.values[1:]))
        beams = replay.names([replay.recorder.beams_W])
        return replay.run(
            choice, *replay.names(choice.values[:_BEAMS]), *beams, *replay.names(choice.values[_BEAMS + 1 :])
        )

    def _unconstrained(self, replay: "Replay", step: "Step", x: str) -> tuple[str, ...]:
        return replay.named.run("free", x, *replay.names(_free_arguments(replay.recorder, step)[1:]))


@dataclass(frozen=True)
class Call:
    """Of a piece."""

    piece: str
    values: tuple[Tensor, ...]
    of: int
    outputs: tuple[Tensor, ...]


Step = list[Call]
"""The calls that write one code: the layers, what scores, and what chooses."""


class Recorder(EagerPieces):
    """Runs the pieces, and keeps what writes codes."""

    def __init__(self, generator: Generator, max_branch: tuple[int, ...], beams_W: Tensor) -> None:
        super().__init__(generator, max_branch)
        self.beams_W = beams_W
        """One entry a beam; the search chooses twice as many where repeated sets are dropped afterwards."""
        self.steps: list[Step] = []
        self._step: Step = []
        self._parameters: list[Tensor] = []

    def run(self, piece: str, *values: Tensor, of: int = 0) -> tuple[Tensor, ...]:
        """Runs one piece."""
        outputs = super().run(piece, *values, of=of)
        if piece in {"decode_layer", "score_root", "score", *_CHOICES}:
            self._step.append(Call(piece, values, of, outputs))
        if piece in _CHOICES:
            self.steps.append(self._step)
            self._step = []
        return outputs

    def parameter(self, name: str, *index: int) -> Tensor:
        """See `Pieces.parameter`."""
        self._parameters.append(super().parameter(name, *index))
        return self._parameters[-1]

    def is_parameter(self, value: Tensor) -> bool:
        """Whether it is of the model, and so a weight of the graph."""
        return any(value is parameter for parameter in self._parameters)


def _free_arguments(recorder: Recorder, step: Step) -> tuple[Tensor, ...]:
    # A piece that scores takes its vectors and the beams' scores first, and the codebook last.
    score = step[-2]
    return (*score.values[:2], recorder.beams_W, *score.values[-2:])


class Replay:
    """Writes recorded calls into a graph: what they made of each other stays inside, the rest is fed."""

    def __init__(self, named: NamedPieces, recorder: Recorder) -> None:
        self.named, self.recorder = named, recorder
        self._name_of: dict[int, str] = {}
        self._feeds: Feeds = {}

    def names(self, values: Sequence[Tensor]) -> list[str]:
        """Of each value in the graph."""
        return [self._name(value) for value in values]

    def run(self, call: Call, *given: str) -> tuple[str, ...]:
        """Replays one call."""
        outputs = self.named.run(call.piece, *given, of=call.of)
        self._name_of.update((id(value), name) for value, name in zip(call.outputs, outputs, strict=True))
        return outputs

    def layers(self, step: Step) -> tuple[str, list[str]]:
        """Replays the layers; their output, and the grown suffix."""
        (x,), grown = self.names(step[0].values[:1]), []
        for call in step[:-2]:
            x, *suffix = self.run(call, x, *self.names(call.values[1:]))
            grown += suffix
        return x, grown

    def model(self, outputs: Sequence[str]) -> tuple[onnx.ModelProto, Feeds]:
        """What was replayed, and what it is fed; no size is known in advance."""
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in self._feeds.items()
        ]
        public = {f"output_{place}": name for place, name in enumerate(outputs)}
        types = {name: onnx.ValueInfoProto(name=name) for name in public}
        model = self.named.model("step", inputs, public, types)
        read = {name for node in model.graph.node for name in node.input}
        unread = [entry for entry in model.graph.input if entry.name not in read]
        for entry in unread:
            model.graph.input.remove(entry)
        return model, {name: value for name, value in self._feeds.items() if name in read}

    def _name(self, value: Tensor) -> str:
        if id(value) not in self._name_of:
            name = f"value_{len(self._name_of)}"
            if self.recorder.is_parameter(value):
                name = self.named.constant(name, value)
            else:
                self._feeds[name] = value.numpy()
            self._name_of[id(value)] = name
        return self._name_of[id(value)]
