"""The beam search itself: which piece runs when, and on what.

It is written once over opaque values. `model_export.search.eager` runs it on tensors; `model_export.onnx.assemble` runs
it on names and thereby writes the graph. What the one does, the other does.

Legend: K slate size, L levels; other letters as in `model_export.search.pieces`.
"""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from service.inference.feeds import OUTPUTS

Value = TypeVar("Value")

HISTORY_INPUTS = (
    "history_codes",
    "history_actions",
    "history_ages",
    "history_values",
    "history_lengths",
)
HISTORY_ROWS = "history_rows"
"""A further input of generators with item vectors, and of searches with a reward."""
ITEM_EMBEDDINGS = "item_embeddings"
"""A further input of searches with a reward: the tokenizer's embedding of each item, float32 [N, E]."""
ITEM_REWARDS = "item_rewards"
"""Their further output, float32 [B, W, K]."""
REQUEST_INPUTS = (
    "excluded_rows",
    "filter_slots",
    "allowed_cumsum",
    "group_limits",
    "cap_slots",
    "diversities",
    "sids",
    "beam_slots",
)


def trie_inputs(num_levels: int) -> tuple[str, ...]:
    """Names of the trie arrays, level by level."""
    arrays = ("child_begin", "child_code", "child_row", "child_group")
    return tuple(f"{name}_{level}" for level in range(num_levels) for name in arrays)


def vector_inputs(num_levels: int) -> tuple[str, ...]:
    """Names of the nodes' vectors, level by level; those of the last level are the items'."""
    return tuple(f"child_vector_{level}" for level in range(num_levels))


def graph_inputs(num_levels: int, *, has_vectors: bool, has_reward: bool = False) -> tuple[str, ...]:
    """All inputs of the search, in order."""
    rows = (HISTORY_ROWS,) if has_vectors or has_reward else ()
    vectors = vector_inputs(num_levels) if has_vectors else ()
    embeddings = (ITEM_EMBEDDINGS,) if has_reward else ()
    return (*HISTORY_INPUTS, *REQUEST_INPUTS, *trie_inputs(num_levels), *rows, *vectors, *embeddings)


class Pieces(Protocol, Generic[Value]):
    """Where the driver's values come from."""

    def run(self, piece: str, *values: Value) -> tuple[Value, ...]:
        """Runs one of `model_export.search.pieces` by its name."""
        ...

    def parameter(self, name: str, *index: int) -> Value:
        """Weights and constants of the search.

        `code_table`, `head`, `head_bias`, `branch`, `level` at a level, with item vectors `query`, `query_bias` and
        `scale` too; `offset` at a position and a level; `num_missing` and `place` at a position; `ranks`, as many as
        the index says.
        """
        ...


class Search(Generic[Value]):
    """One search from inputs to outputs."""

    def __init__(self, pieces: Pieces[Value], inputs: Mapping[str, Value], slate_size: int, num_levels: int) -> None:
        self._pieces = pieces
        self._inputs = inputs
        self._slate_size = slate_size
        self._num_levels = num_levels
        item_vectors = vector_inputs(num_levels)[-1]
        self._has_vectors = item_vectors in inputs
        self._item_vectors = (inputs[item_vectors],) if self._has_vectors else ()

    def run(self) -> dict[str, Value]:
        """Writes the slate item by item, code by code."""
        pieces, inputs = self._pieces, self._inputs
        request = (inputs["excluded_rows"], inputs["filter_slots"], inputs["allowed_cumsum"])
        history = [inputs[name] for name in HISTORY_INPUTS]
        vectors = (inputs[HISTORY_ROWS], *self._item_vectors) if self._has_vectors else ()
        (self._bias, self._counts, self._score, self._rows, root, self._trace, empty, *rest) = pieces.run(
            "start", *history, *request, *vectors
        )
        num_interests = len(self._item_vectors)
        self._interest, context = tuple(rest[:num_interests]), rest[num_interests:]
        self._context = tuple(context)
        self._suffix = (empty,) * len(context)
        self._excluded_codes = [
            pieces.run(
                "excluded_codes",
                inputs["excluded_rows"],
                inputs["sids"],
                pieces.parameter("level", level),
                pieces.parameter("head_bias", level),
            )[0]
            for level in range(self._num_levels)
        ]
        (self._twice,) = pieces.run("widen", inputs["beam_slots"])
        groups = inputs[f"child_group_{self._num_levels - 1}"]
        self._kept = [self._score]
        for position in range(self._slate_size):
            limits = (groups, inputs["group_limits"], inputs["cap_slots"])
            later_root, *self._kept = pieces.run("begin_item", self._score, self._rows, self._kept[-1], *limits)
            if position == 0:
                (token,) = pieces.run("first_token", self._score, pieces.parameter("offset", 0, 0), *self._interest)
            else:
                tables = (pieces.parameter("code_table", level) for level in range(self._num_levels))
                offset = pieces.parameter("offset", position, 0)
                (token, *interest) = pieces.run(
                    "item_token", self._rows, inputs["sids"], offset, *self._interest, *self._item_vectors, *tables
                )
                self._interest = tuple(interest)
                root = later_root
            self._write_item(position, token, root)
        outputs = pieces.run("finish", self._score, self._rows, self._trace, self._kept[-1])
        named = dict(zip(OUTPUTS, outputs, strict=True))
        if ITEM_EMBEDDINGS in inputs:
            items = (inputs[HISTORY_ROWS], inputs[ITEM_EMBEDDINGS], inputs["sids"], named["item_rows"])
            (named[ITEM_REWARDS],) = pieces.run("reward", *history, *items)
        return named

    def _write_item(self, position: int, token: Value, node: Value) -> None:
        pieces, inputs = self._pieces, self._inputs
        for level in range(self._num_levels):
            total, logprob, first, *suffix = self._step(position, level, token, node)
            ends_item = level == self._num_levels - 1
            # One item alone is a set of one: nothing to compare before the second.
            compares_sets = ends_item and position > 0
            beams = self._twice if compares_sets else inputs["beam_slots"]
            chosen = pieces.run("select", total, logprob, first, beams)
            if compares_sets:
                chosen = pieces.run("distinct", *chosen, self._rows, inputs["beam_slots"])
            self._score, parent, node, logprob = chosen
            self._rows, self._trace, *inherited = pieces.run(
                "advance", parent, logprob, self._rows, self._trace, *self._kept, *self._interest, *suffix
            )
            self._kept, inherited = inherited[:2], inherited[2:]
            num_interests = len(self._interest)
            self._interest, self._suffix = tuple(inherited[:num_interests]), tuple(inherited[num_interests:])
            if not ends_item:
                table = pieces.parameter("code_table", level)
                offset = pieces.parameter("offset", position, level + 1)
                (token,) = pieces.run("code_token", node, inputs[f"child_code_{level}"], table, offset)
        (self._rows,) = pieces.run("append_row", self._rows, node)

    def _step(self, position: int, level: int, token: Value, node: Value) -> tuple[Value, ...]:
        pieces, inputs = self._pieces, self._inputs
        affinity: tuple[Value, ...] = ()
        if self._has_vectors:
            parameters = (pieces.parameter(name, level) for name in ("query", "query_bias", "scale"))
            affinity = (*self._interest, inputs[f"child_vector_{level}"], *parameters)
        return pieces.run(
            "root_step" if level == 0 else "step",
            token,
            self._bias,
            self._score,
            node,
            self._rows,
            inputs["sids"],
            pieces.parameter("level", level),
            pieces.parameter("num_missing", position),
            inputs[f"child_begin_{level}"],
            inputs[f"child_code_{level}"],
            inputs[f"child_row_{level}"],
            inputs[f"child_group_{level}"],
            *self._kept,
            pieces.parameter("branch", level),
            inputs["excluded_rows"],
            self._counts,
            self._excluded_codes[level],
            inputs["allowed_cumsum"],
            inputs["filter_slots"],
            inputs["group_limits"],
            inputs["diversities"],
            pieces.parameter("head", level),
            pieces.parameter("head_bias", level),
            *affinity,
            *self._suffix,
            *self._context,
        )


def run_search(
    pieces: Pieces[Value], inputs: Mapping[str, Value], slate_size: int, num_levels: int
) -> dict[str, Value]:
    """The best slates: outputs by name."""
    return Search(pieces, inputs, slate_size, num_levels).run()
