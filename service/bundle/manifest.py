"""`manifest.json`: everything the model determines and the service must know."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FORMAT_VERSION: Final = 4

ScoreMode = Literal["full_softmax", "legal_softmax"]
Precision = Literal["float32", "float16", "bfloat16", "int8"]
Engine = Literal["onnxruntime", "openvino"]
Choice = Literal["score", "reward"]
Purpose = Literal["generator", "explain", "sampler"]
"""What a graph is for."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ActionSpec(_Strict):
    """One kind of event. Its place in `Manifest.actions` plus one is its number inside the graph (0 pads)."""

    name: str
    unit: str = ""
    """Unit of the raw `value`, for people: `s`, `stars`; empty: no value."""
    value_edges: tuple[float, ...] = ()
    """Ascending bucket edges of the raw value; the graph holds the same numbers."""


class GraphSpec(_Strict):
    """One ONNX file of the bundle."""

    file: str
    precision: Precision
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Variant(_Strict):
    """An engine that ran the generator's graph at export, in one precision, and stayed within its tolerance."""

    engine: Engine
    precision: Precision
    max_logprob_difference: float = Field(ge=0)
    """From the trained model, over the codes of equal best slates."""
    identical_share: float = Field(ge=0, le=1)
    """Of the best slates: the same as the model's."""
    batch_size: int = Field(ge=1)
    ms: float = Field(gt=0)
    """Median of a batch of that size, where the bundle was exported."""


class GoldenTolerance(_Strict):
    """How far a runner may stray from the golden logprobs before the bundle is refused."""

    logprob_abs: float = Field(gt=0)
    """Largest absolute difference of a per-level logprob. Slates must be identical where the score margin
    between best and second beam exceeds ten times this."""
    reward_abs: float | None = Field(default=None, gt=0)
    """Largest absolute difference of an item's reward; None: not compared."""


class Manifest(_Strict):
    """Schema of `manifest.json`. Every other file of the bundle stands in `files` with its sha256."""

    format_version: Literal[4] = FORMAT_VERSION
    model_version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    created: str
    """RFC 3339 time of export."""
    manifest_sha256: str = ""
    """Digest of every other field (`manifest_digest`): a changed figure is found like a changed file."""
    files: dict[str, str]
    """File name -> sha256 hex digest, `manifest.json` itself left out."""
    num_levels: int = Field(ge=1, le=16)
    codebook_sizes: tuple[int, ...]
    """Codes per level, as in the weights; every code of level l lies in [0, codebook_sizes[l])."""
    max_branch: tuple[int, ...]
    """Largest number of children of a trie node above level l; arrays are padded to it."""
    slate_size: int = Field(ge=1)
    """K: items that the graph writes."""
    beam_width: int = Field(ge=1)
    """Default width."""
    max_beam_width: int = Field(ge=1)
    history_length: int = Field(ge=1)
    """T: newest events that the model reads."""
    item_vector_width: int = Field(default=0, ge=0)
    """Size of the vectors in `item_vectors.npz`; 0: the model scores by codes alone, and there is no such file."""
    item_embedding_width: int = Field(default=0, ge=0)
    """Size of the embeddings in `item_embeddings.npz`, which the reward model reads; 0: there is no such file."""
    choice: Choice = "score"
    """What chooses among the generator's slates: their own score, or the reward that the graph expects of them."""
    actions: tuple[ActionSpec, ...]
    default_action: str
    score_mode: ScoreMode
    has_times: bool
    """False when the training data had no usable times: the graph then ignores them."""
    graphs: dict[str, GraphSpec]
    """By purpose (`Purpose`); a purpose that this version does not know is left alone. All have their large tensors in
    one file beside them, which stands in `files` alone."""
    variants: tuple[Variant, ...] = ()
    """What can run the generator's graph, fastest first."""
    golden_tolerance: dict[str, GoldenTolerance]
    """By precision."""
    recipe: dict[str, Any]
    """The resolved training recipe."""
    commit: str
    seed: int
    data_sha256: str
    metrics: dict[str, float] = Field(default_factory=dict)
    """Test metrics of this model, by name, as the evaluation report gives them."""
    slate_statistics: dict[str, float] = Field(default_factory=dict)
    """What slates looked like at export (`model_export.onnx.statistics`), to compare what is served with. Bundles of
    earlier versions name less of it."""

    @model_validator(mode="after")
    def _levels_agree(self) -> "Manifest":
        for name, sizes in (("codebook_sizes", self.codebook_sizes), ("max_branch", self.max_branch)):
            if len(sizes) != self.num_levels or min(sizes, default=0) < 1:
                raise ValueError(f"{name} must give a positive size for each of the {self.num_levels} levels")
        if self.beam_width > self.max_beam_width:
            raise ValueError("beam_width exceeds max_beam_width")
        names = [action.name for action in self.actions]
        if not names or len(set(names)) != len(names):
            raise ValueError("actions must be non-empty and unique")
        if self.default_action not in names:
            raise ValueError(f"default_action {self.default_action!r} is not among the actions")
        if "generator" not in self.graphs:
            raise ValueError("graphs lacks 'generator'")
        for purpose, graph in self.graphs.items():
            if graph.file not in self.files:
                raise ValueError(f"graph {purpose!r}: {graph.file!r} is not among the files")
            if graph.precision not in self.golden_tolerance:
                raise ValueError(f"golden_tolerance lacks {graph.precision!r}")
        if self.choice == "reward" and "item_rewards" not in self.graphs["generator"].outputs:
            raise ValueError("choice is 'reward', but the generator's graph gives none")
        return self

    @model_validator(mode="after")
    def _variants_agree(self) -> "Manifest":
        if list(self.variants) != sorted(self.variants, key=lambda variant: variant.ms):
            raise ValueError("variants must come fastest first")
        for variant in self.variants:
            if variant.precision not in self.golden_tolerance:
                raise ValueError(f"golden_tolerance lacks {variant.precision!r}")
        return self

    @property
    def action_numbers(self) -> dict[str, int]:
        """Action name -> its number inside the graph, from 1; 0 pads."""
        return {action.name: number for number, action in enumerate(self.actions, start=1)}


def score_keys(num_items: int) -> tuple[str, str]:
    """Where `slate_statistics` has mean and deviation of the score per item of slates cut after that many items."""
    return f"score_mean_{num_items}", f"score_deviation_{num_items}"


def manifest_digest(fields: Mapping[str, Any]) -> str:
    """sha256 hex digest of a manifest's JSON fields but `manifest_sha256`, whatever their order and spacing."""
    rest = {name: value for name, value in fields.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
