"""The beam search itself: which piece runs when, and on what.

It is written once over opaque values. `model_export.search.eager` runs it on tensors; `model_export.onnx.assemble` runs
it on names and thereby writes the graph. What the one does, the other does.

Legend: K slate size, L levels; other letters as in `model_export.search.pieces`.
"""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from model_export.model.generator import Generator
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

    def run(self, piece: str, *values: Value, of: int = 0) -> tuple[Value, ...]:
        """Runs one of `model_export.search.pieces` by its name, where there are several that `of` a layer."""
        ...

    def parameter(self, name: str, *index: int) -> Value:
        """Weights and constants of the search.

        `code_table`, `head`, `head_bias`, `branch`, `codes`, `codes_and_one`, `level` at a level, with item vectors
        `query`, `query_bias` and `scale` too; `offset` at a position and a level; `num_missing` and `place` at a
        position; `chosen`, the places in a trail of as many items and the dummy before them at a level; `ranks`, as
        many as the index says.
        """
        ...


class Search(Generic[Value]):
    """One search from inputs to outputs."""

    def __init__(
        self,
        pieces: Pieces[Value],
        inputs: Mapping[str, Value],
        *,
        slate_size: int,
        num_levels: int,
        encoder_layers: int,
        decoder_layers: int,
    ) -> None:
        self._pieces = pieces
        self._inputs = inputs
        self._slate_size = slate_size
        self._num_levels = num_levels
        self._encoder_layers = encoder_layers
        self._decoder_layers = decoder_layers
        item_vectors = vector_inputs(num_levels)[-1]
        self._has_vectors = item_vectors in inputs
        self._item_vectors = (inputs[item_vectors],) if self._has_vectors else ()
        self._history = [inputs[name] for name in HISTORY_INPUTS]

    def run(self) -> dict[str, Value]:
        """Writes the slate item by item, code by code."""
        pieces, inputs = self._pieces, self._inputs
        self._encode()
        self._start()
        for position in range(self._slate_size):
            self._write_item(position)
        items = pieces.parameter("chosen", self._slate_size, self._num_levels - 1)
        outputs = pieces.run("finish", self._score, self._trail, self._trace, items, self._settled)
        named = dict(zip(OUTPUTS, outputs, strict=True))
        if ITEM_EMBEDDINGS in inputs:
            rows = (inputs[HISTORY_ROWS], inputs[ITEM_EMBEDDINGS], inputs["sids"], named["item_rows"])
            (named[ITEM_REWARDS],) = pieces.run("reward", *self._history, *rows)
        return named

    def _encode(self) -> None:
        pieces = self._pieces
        vectors = (self._inputs[HISTORY_ROWS], *self._item_vectors) if self._has_vectors else ()
        x, self._bias, *interest = pieces.run("embed", *self._history, *vectors)
        self._interest = tuple(interest)
        for layer in range(self._encoder_layers):
            (x,) = pieces.run("encoder_layer", x, self._bias, of=layer)
        self._context = [pieces.run("remember", x, of=layer) for layer in range(self._decoder_layers)]

    def _start(self) -> None:
        """One empty beam per request, and what is counted once for all steps."""
        pieces, inputs = self._pieces, self._inputs
        excluded, filters = inputs["excluded_rows"], (inputs["filter_slots"], inputs["allowed_cumsum"])
        self._change, self._score, self._node, self._trail, self._trace, empty = pieces.run("start", excluded, *filters)
        self._settled = self._trace
        self._suffix = [(empty, empty)] * self._decoder_layers
        child, *self._root, excluded_child = pieces.run(
            "open_root",
            excluded,
            self._change,
            inputs["sids"],
            pieces.parameter("level", 0),
            *(inputs[f"child_{name}_0"] for name in ("code", "row", "group")),
            inputs["allowed_cumsum"],
            inputs["filter_slots"],
            pieces.parameter("head_bias", 0),
        )
        self._root_child = child
        self._root_vectors: tuple[Value, ...] = ()
        if self._has_vectors:
            self._root_vectors = pieces.run("root_vectors", child, inputs["child_vector_0"])
        self._excluded = [excluded_child]
        for level in range(1, self._num_levels):
            trie = (inputs[f"child_begin_{level}"], inputs[f"child_row_{level}"], pieces.parameter("branch", level))
            self._excluded += pieces.run("excluded_children", excluded, self._excluded[-1], *trie)
        beams = inputs["beam_slots"]
        self._of_all = [pieces.run("spread", values, beams)[0] for values in (self._change, *self._excluded[1:])]
        (self._twice,) = pieces.run("widen", beams)
        (self._offset,) = pieces.run("offsets", inputs["filter_slots"], pieces.parameter("ranks", 1))

    def _write_item(self, position: int) -> None:
        pieces, inputs = self._pieces, self._inputs
        items = pieces.parameter("chosen", position, self._num_levels - 1)
        limits = (inputs[f"child_group_{self._num_levels - 1}"], inputs["group_limits"], inputs["cap_slots"])
        root, self._full, self._settled = pieces.run(
            "begin_item", self._score, self._trail, items, self._settled, *limits
        )
        if position > 0:  # before the first item there is none that tells whether a beam has ended
            self._node = root
        token = self._item_token(position)
        for level in range(self._num_levels):
            for layer in range(self._decoder_layers):
                token, *grown = pieces.run(
                    "decode_layer", token, *self._suffix[layer], *self._context[layer], self._bias, of=layer
                )
                self._suffix[layer] = (grown[0], grown[1])
            ends_item = level == self._num_levels - 1
            # One item alone is a set of one: nothing to compare before the second.
            compares_sets = ends_item and position > 0
            choose = self._choose_root if level == 0 else self._choose
            chosen = choose(position, level, token, self._twice if compares_sets else inputs["beam_slots"])
            if compares_sets:
                chosen = pieces.run("distinct", *chosen, self._trail, items, inputs["beam_slots"])
            self._advance(*chosen)
            if not ends_item:
                table = pieces.parameter("code_table", level)
                offset = pieces.parameter("offset", position, level + 1)
                (token,) = pieces.run("code_token", self._node, inputs[f"child_code_{level}"], table, offset)

    def _item_token(self, position: int) -> Value:
        pieces, offset = self._pieces, self._pieces.parameter("offset", position, 0)
        if position == 0:
            (token,) = pieces.run("first_token", self._trace, offset, *self._interest)
            return token
        tables = (pieces.parameter("code_table", level) for level in range(self._num_levels))
        token, *interest = pieces.run(
            "item_token", self._trail, self._inputs["sids"], offset, *self._interest, *self._item_vectors, *tables
        )
        self._interest = tuple(interest)
        return token

    def _choose_root(self, position: int, level: int, token: Value, beams: Value) -> tuple[Value, ...]:
        pieces, inputs = self._pieces, self._inputs
        total, logprob, kept = pieces.run(
            "score_root",
            *self._of_beams(position, level, token),
            inputs["child_code_0"],
            *self._root,
            inputs["group_limits"],
            inputs["diversities"],
            pieces.parameter("head", level),
            pieces.parameter("head_bias", level),
            *self._affinity(level, self._root_vectors),
        )
        width = pieces.parameter("ranks", 1) if position == 0 else inputs["beam_slots"]
        parents, *_ = pieces.run("places", inputs["filter_slots"], width, pieces.parameter("codes_and_one", level))
        return pieces.run(
            "select_root", total, logprob, self._root_child, self._score, kept, self._node, beams, parents
        )

    def _choose(self, position: int, level: int, token: Value, beams: Value) -> tuple[Value, ...]:
        pieces, inputs = self._pieces, self._inputs
        branch = pieces.parameter("branch", level)
        vectors = (inputs[f"child_vector_{level}"],) if self._has_vectors else ()
        total, logprob, child, kept = pieces.run(
            "score",
            *self._of_beams(position, level, token),
            *(inputs[f"child_{name}_{level}"] for name in ("begin", "code", "row", "group")),
            branch,
            self._of_all[level],
            self._of_all[0],
            inputs["allowed_cumsum"],
            inputs["filter_slots"],
            inputs["group_limits"],
            pieces.parameter("head", level),
            pieces.parameter("head_bias", level),
            *self._affinity(level, vectors),
        )
        parents, *behind = pieces.run("places", inputs["filter_slots"], inputs["beam_slots"], branch)
        return pieces.run("select", total, logprob, child, self._score, kept, parents, beams, *behind)

    def _of_beams(self, position: int, level: int, token: Value) -> tuple[Value, ...]:
        pieces = self._pieces
        chosen, num_missing = pieces.parameter("chosen", position, level), pieces.parameter("num_missing", position)
        beams = (token, self._score, self._node, self._trail)
        return (*beams, chosen, num_missing, self._full, self._settled)

    def _affinity(self, level: int, vectors: tuple[Value, ...]) -> tuple[Value, ...]:
        if not self._has_vectors:
            return ()
        return (*self._interest, *vectors, *(self._pieces.parameter(name, level) for name in _QUERY))

    def _advance(self, score: Value, parent: Value, child: Value, logprob: Value) -> None:
        suffix = [tensor for pair in self._suffix for tensor in pair]
        self._trail, self._trace, self._settled, self._full, *rest = self._pieces.run(
            "advance", parent, child, logprob, self._offset, self._trail, self._trace, self._settled, self._full,
            *self._interest, *suffix,
        )  # fmt: skip
        (self._offset,) = self._pieces.run("offsets", self._inputs["filter_slots"], self._inputs["beam_slots"])
        self._score, self._node = score, child
        num_interests = len(self._interest)
        self._interest, flat = tuple(rest[:num_interests]), rest[num_interests:]
        self._suffix = list(zip(flat[::2], flat[1::2], strict=True))


_QUERY = ("query", "query_bias", "scale")


def run_search(
    pieces: Pieces[Value], inputs: Mapping[str, Value], generator: Generator, slate_size: int
) -> dict[str, Value]:
    """The best slates: outputs by name."""
    return search_of(pieces, inputs, generator, slate_size).run()


def search_of(
    pieces: Pieces[Value], inputs: Mapping[str, Value], generator: Generator, slate_size: int
) -> Search[Value]:
    """The search of this generator."""
    return Search(
        pieces,
        inputs,
        slate_size=slate_size,
        num_levels=generator.spec.num_levels,
        encoder_layers=generator.config.encoder_layers,
        decoder_layers=generator.config.decoder_layers,
    )
