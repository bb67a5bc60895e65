"""Small random search problems, and a slow decoder in plain Python and numpy to hold the fast one to.

Longer than other files, because every rule of the search stands here a second time.

Legend: B requests, T history, L levels, K items, V codes, W beams, X excluded rows, F filter slots, N items.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import numpy.typing as npt
import torch

from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.generator import Generator, HistoryBatch
from model_export.model.items import Affinity, ItemVectors
from model_export.model.trie import TriePaths
from service.catalog import CatalogSnapshot
from service.domain import Item
from service.inference.runner import age_seconds

torch.set_num_threads(1)

CODEBOOK_SIZES = (4, 3, 3)
HISTORY_LENGTH = 4
VECTOR_WIDTH = 6
NOW_MS = 1_700_000_000_000
SCORE_MODES = ("full_softmax", "legal_softmax")
TOLERANCE = 1e-4

Sequence_ = tuple[int, ...]
"""Rows of a slate, in order."""


@lru_cache(maxsize=64)
def tiny_generator(
    num_levels: int,
    slate_size: int,
    score_mode: str,
    *,
    seed: int = 0,
    context_free: bool = False,
    num_experts: int = 1,
    codebook_sizes: tuple[int, ...] = CODEBOOK_SIZES,
    catalog: CatalogSnapshot | None = None,
) -> Generator:
    """A random generator of width 8 and one layer, its contexts strong enough to change the ranking.

    `context_free`: logits are the heads' biases alone, and few values of them, so that all orders of a set tie and
    many sets tie with others. `catalog`: item vectors for its items, and queries that make them matter.
    """
    torch.manual_seed(seed)
    config = ModelConfig(
        width=8,
        num_heads=2,
        head_width=4,
        encoder_layers=1,
        decoder_layers=1,
        feed_forward_width=8,
        num_experts=num_experts,
        num_active_experts=min(2, num_experts),
        dropout=0.1,
        score_mode=score_mode,  # type: ignore[arg-type]
        item_vector_width=0 if catalog is None else VECTOR_WIDTH,
    )
    spec = GeneratorSpec(
        codebook_sizes=codebook_sizes[:num_levels],
        slate_size=slate_size,
        history_length=HISTORY_LENGTH,
        value_edges=((1.0, 5.0), ()),
        has_times=True,
    )
    generator = Generator(config, spec, None if catalog is None else item_vectors(catalog)).eval()
    if generator.affinity is not None:
        make_affinity_matter(generator.affinity)
    with torch.no_grad():
        for tensor in (generator.start_D, generator.level_LD, generator.position_KD, generator.encoder.start_D):
            tensor.normal_()
        for table in generator.code_tables:
            table.weight.normal_()
        for head in generator.heads:
            assert isinstance(head, torch.nn.Linear)
            if context_free:
                head.weight.zero_()
                head.bias.copy_(torch.randint(0, 2, head.bias.shape).float())
            else:
                head.weight.normal_()
    return generator


def item_vectors(catalog: CatalogSnapshot) -> ItemVectors:
    """Random vectors of the catalog's items; every third item was never seen in training."""
    draw = torch.Generator().manual_seed(catalog.num_items)
    embedding_NE = torch.randn(catalog.num_items, VECTOR_WIDTH + 2, generator=draw)
    items = ItemVectors(
        VECTOR_WIDTH, embedding_NE, torch.arange(catalog.num_items) % 3 > 0, TriePaths.of(catalog, torch.device("cpu"))
    )
    with torch.no_grad():
        items.residual_ND.normal_(std=0.05, generator=draw)
    return items


@torch.no_grad()
def make_affinity_matter(affinity: Affinity) -> None:
    """Queries that depend on the hidden vector as much as on the interest; scales that differ by level."""
    for layer in (affinity.into_history, affinity.into_slate, *affinity.from_hidden):
        layer.get_parameter("weight").normal_(std=0.5)
    affinity.action_A1.weight.uniform_(0.5, 1.5)
    affinity.decay_logit.fill_(0.7)
    affinity.log_scale_L.uniform_(0.0, 1.5)


def rows_of(history: HistoryBatch, catalog: CatalogSnapshot) -> torch.Tensor:
    """The row [B, T] of each event's codes; -1 where the catalog has no such item, and in the padding."""
    row_of = {tuple(sid): row for row, sid in enumerate(catalog.sids_NL.tolist())}
    rows = [
        [row_of.get(tuple(code - 2 for code in codes), -1) if place < length else -1 for place, codes in enumerate(one)]
        for one, length in zip(history.codes_BTL.tolist(), history.lengths_B.tolist(), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.int32)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A batch of requests against one catalog."""

    catalog: CatalogSnapshot
    history: HistoryBatch
    excluded: tuple[frozenset[int], ...]
    """Rows, per request."""
    allowed_FN: npt.NDArray[np.bool_]
    slots: tuple[int, ...]
    limits: tuple[int, ...] = ()
    """Most items of one group, per request; 0, or none given: any number."""
    diversities: tuple[float, ...] = ()
    """Per request; none given: 0."""

    @property
    def num_requests(self) -> int:
        """B."""
        return len(self.slots)

    @property
    def excluded_BX(self) -> torch.Tensor:
        """Padded with -1 in front and behind, because the place of the padding must not matter."""
        width = max((len(rows) for rows in self.excluded), default=0) + 1
        rows_BX = np.full((self.num_requests, width), -1, dtype=np.int32)
        for request, rows in enumerate(self.excluded):
            shift = request % 2 if len(rows) < width else 0
            rows_BX[request, shift : shift + len(rows)] = sorted(rows, reverse=bool(request % 3))
        return torch.from_numpy(rows_BX)

    @property
    def cumsum_FN(self) -> torch.Tensor:
        """[F, N + 1]."""
        return torch.from_numpy(np.pad(self.allowed_FN.cumsum(1), ((0, 0), (1, 0))).astype(np.int32))

    def available(self, request: int) -> list[int]:
        """Rows that the request may be shown."""
        return [
            row
            for row in range(self.catalog.num_items)
            if self.allowed_FN[self.slots[request], row] and row not in self.excluded[request]
        ]

    def restrictions(self) -> dict[str, torch.Tensor]:
        """As `BeamSearch.decode` takes them."""
        return {
            "excluded_rows_BX": self.excluded_BX,
            "filter_slots_B": torch.tensor(self.slots, dtype=torch.int32),
            "allowed_cumsum_FN": self.cumsum_FN,
            "group_limits_B": torch.tensor(self.limits or (0,) * self.num_requests, dtype=torch.int32),
            "diversities_B": torch.tensor(self.diversities or (0.0,) * self.num_requests),
        }

    def penalty(self, request: int, slate: Sequence_) -> float:
        """What the slate's score loses for items that share their first code."""
        codes = [int(self.catalog.sids_NL[row, 0]) for row in slate if row >= 0]
        num_pairs = sum(one == other for one, other in itertools.combinations(codes, 2))
        return self.diversities[request] * num_pairs if self.diversities else 0.0


def make_catalog(sids: Iterable[Sequence[int]], groups: Sequence[str] = ()) -> CatalogSnapshot:
    """A catalog of the given sids, in any order, and the group of each, where there are any."""
    sids_NL = np.array(list(sids), dtype=np.int32)
    groups = groups or [""] * len(sids_NL)
    items = [Item(item_id=f"item-{row}", group=group) for row, group in enumerate(groups)]
    return CatalogSnapshot.build(items, sids_NL)


def make_history(
    events: Sequence[Sequence[tuple[tuple[int, ...], int, int, float]]], num_levels: int, padding: int = 0
) -> HistoryBatch:
    """One request per list of (history codes, action, age in ms, value), padded by `padding` places too many.

    Padding holds what must never be read: real codes, actions, values and ages.
    """
    lengths = [len(one) for one in events]
    length = max(1, *lengths) + padding if lengths else 1
    codes_BTL = np.full((len(events), length, num_levels), 3, dtype=np.int32)
    actions_BT = np.full((len(events), length), 2, dtype=np.int32)
    ages_BT = np.full((len(events), length), 77, dtype=np.int32)
    values_BT = np.full((len(events), length), 3.0, dtype=np.float32)
    for request, one in enumerate(events):
        for place, (codes, action, age_ms, value) in enumerate(one):
            codes_BTL[request, place] = codes
            actions_BT[request, place] = action
            ages_BT[request, place] = age_seconds(np.array([[NOW_MS - age_ms]]), np.array([NOW_MS]))[0, 0]
            values_BT[request, place] = value
    return HistoryBatch(
        codes_BTL=torch.from_numpy(codes_BTL),
        actions_BT=torch.from_numpy(actions_BT),
        ages_BT=torch.from_numpy(ages_BT),
        values_BT=torch.from_numpy(values_BT),
        lengths_B=torch.tensor(lengths, dtype=torch.int32),
    )


def random_events(
    rng: np.random.Generator, codebook_sizes: Sequence[int], longest: int
) -> list[tuple[tuple[int, ...], int, int, float]]:
    """A history of 0 to `longest` events; some items unknown, some values missing, some ages on a bucket's edge."""
    events = []
    for _ in range(rng.integers(0, longest + 1)):
        known = rng.random() < 0.8
        codes = tuple(int(rng.integers(0, size)) + 2 if known else 1 for size in codebook_sizes)
        age_s = 2 ** int(rng.integers(1, 30)) - 1 if rng.random() < 0.5 else int(rng.integers(0, 10**7))
        value = [float("nan"), float(rng.normal() * 5), 1.0, 5.0][rng.integers(0, 4)]
        events.append((codes, int(rng.integers(1, 3)), age_s * 1000, value))
    return events


def random_problem(
    rng: np.random.Generator,
    codebook_sizes: Sequence[int],
    num_requests: int,
    most_items: int,
    longest_history: int = HISTORY_LENGTH,
    padding: int = 0,
    has_caps: bool = False,
) -> Problem:
    """Any mix of catalog size, filters (the last one lets nothing pass in some problems), exclusions and caps."""
    num_drawn = int(rng.integers(1, most_items + 1))
    sids_NL = np.unique(np.stack([rng.integers(0, size, num_drawn) for size in codebook_sizes], 1), axis=0)
    catalog = make_catalog(sids_NL, random_groups(rng, sids_NL) if has_caps else ())
    num_filters = int(rng.integers(1, 4))
    shares_F = rng.choice([0.0, 0.1, 0.5, 1.0], num_filters, p=[0.1, 0.3, 0.3, 0.3])
    events = [random_events(rng, codebook_sizes, longest_history) for _ in range(num_requests)]
    history = make_history(events, len(codebook_sizes), padding)
    return Problem(
        catalog=catalog,
        history=replace(history, rows_BT=rows_of(history, catalog)),
        excluded=tuple(
            frozenset(np.flatnonzero(rng.random(catalog.num_items) < rng.choice([0.0, 0.2, 0.9])).tolist())
            for _ in range(num_requests)
        ),
        allowed_FN=rng.random((num_filters, catalog.num_items)) < shares_F[:, None],
        slots=tuple(rng.integers(0, num_filters, num_requests).tolist()),
        limits=tuple(rng.integers(0, 4, num_requests).tolist()) if has_caps else (),
        diversities=tuple(rng.choice([0.0, 0.5, 3.0], num_requests).tolist()) if has_caps else (),
    )


def random_groups(rng: np.random.Generator, sids_NL: npt.NDArray[np.int32]) -> list[str]:
    """Groups that follow the first code, or do not, or do for some items; one of them is none."""
    by_code_N, any_N = sids_NL[:, 0] % 5, rng.integers(0, 5, len(sids_NL))
    group_N = np.where(rng.random(len(sids_NL)) < rng.choice([0.0, 0.8, 1.0]), by_code_N, any_N)
    return ["" if group == 0 else f"group-{group}" for group in group_N]


def one_request(history: HistoryBatch, request: int) -> HistoryBatch:
    """That request's history as a batch of one, its padding cut off."""
    length = max(1, int(history.lengths_B[request]))
    part = slice(request, request + 1)
    return HistoryBatch(
        codes_BTL=history.codes_BTL[part, :length],
        actions_BT=history.actions_BT[part, :length],
        ages_BT=history.ages_BT[part, :length],
        values_BT=history.values_BT[part, :length],
        lengths_B=history.lengths_B[part],
        rows_BT=None if history.rows_BT is None else history.rows_BT[part, :length],
    )


def repeat_request(history: HistoryBatch, request: int, times: int) -> HistoryBatch:
    """That request's history as a batch of `times`."""
    one = one_request(history, request)
    arrays = {name: array for name, array in vars(one).items() if array is not None}
    return HistoryBatch(**{name: array.expand(times, *array.shape[1:]).contiguous() for name, array in arrays.items()})


class Oracle:
    """Scores every slate of one request by teacher forcing, in float64, without a trie, a beam or a tensor of rows."""

    def __init__(self, generator: Generator, problem: Problem, request: int, num_items: int) -> None:
        self.available = problem.available(request)
        self._groups = [item.group for item in problem.catalog.items]
        self.penalty = partial(problem.penalty, request)
        self._limit = (problem.limits[request] if problem.limits else 0) or num_items
        self.asked, self.length = num_items, min(num_items, self._most_items())
        self._sids = [tuple(sid) for sid in problem.catalog.sids_NL.tolist()]
        self._num_levels = generator.spec.num_levels
        self._legal = generator.config.score_mode == "legal_softmax"
        self._logits: dict[tuple[Sequence_, tuple[int, ...]], npt.NDArray[np.float64]] = {}
        if self.length:
            self._teach(generator, problem.history, request)

    def _teach(self, generator: Generator, history: HistoryBatch, request: int) -> None:
        slates = list(itertools.permutations(self.available, self.length))
        codes_BKL = torch.tensor([[self._sids[row] for row in slate] for slate in slates])
        with torch.inference_mode():
            levels = generator(repeat_request(history, request, len(slates)), codes_BKL)
        logits = [level.double().numpy() for level in levels]
        for number, slate in enumerate(slates):
            for position, row in enumerate(slate):
                for level in range(self._num_levels):
                    key = (slate[:position], self._sids[row][:level])
                    self._logits.setdefault(key, logits[level][number, position])

    def logprob(self, rows: Sequence_, prefix: tuple[int, ...], code: int) -> float:
        """Of the next code after whole items and the codes of the item begun."""
        logits_V = self._logits[rows, prefix]
        if self._legal:
            level = len(prefix)
            children = {sid[level] for sid in self._sids if sid[:level] == prefix}
            return float(logits_V[code] - np.logaddexp.reduce(logits_V[sorted(children)]))
        return float(logits_V[code] - np.logaddexp.reduce(logits_V))

    def level_logprobs(self, slate: Sequence_) -> npt.NDArray[np.float64]:
        """[K, L] of a slate."""
        return np.array(
            [
                [self.logprob(slate[:place], sid[:level], code) for level, code in enumerate(sid)]
                for place, sid in enumerate(self._sids[row] for row in slate)
            ]
        ).reshape(len(slate), self._num_levels)

    def score(self, slate: Sequence_) -> float:
        """Sum of all logprobs less the penalty."""
        return float(self.level_logprobs(slate).sum()) - self.penalty(slate)

    def _most_items(self) -> int:
        counts = Counter(self._groups[row] for row in self.available)
        return sum(count if group == "" else min(count, self._limit) for group, count in counts.items())

    def may_follow(self, rows: Sequence_, row: int) -> bool:
        """Whether the item is new and its group not full."""
        group = self._groups[row]
        return row not in rows and (group == "" or [self._groups[one] for one in rows].count(group) < self._limit)

    def is_legal(self, slate: Sequence_) -> bool:
        """Whether every item may follow those before it."""
        return all(row in self.available and self.may_follow(slate[:place], row) for place, row in enumerate(slate))

    def all_slates(self) -> dict[Sequence_, float]:
        """Every ordered slate of full length and its score."""
        slates = itertools.permutations(self.available, self.length)
        return {slate: self.score(slate) for slate in slates if self.is_legal(slate)}

    def best_of_sets(self) -> list[tuple[float, Sequence_]]:
        """The slates that remain when at every item's end only the best order of each set goes on, best first.

        No set is ever lost; where three items or more are asked for, the best order of a set may be.
        """
        kept: list[tuple[float, Sequence_]] = [(0.0, ())]
        for _ in range(self.length):
            best: dict[frozenset[int], tuple[float, Sequence_]] = {}
            for _score, rows in kept:
                for row in self.available:
                    if self.may_follow(rows, row):
                        grown = (self.score((*rows, row)), (*rows, row))
                        key = frozenset(grown[1])
                        best[key] = max(best.get(key, grown), grown)
            kept = sorted(best.values(), reverse=True)
        return kept

    def beam_search(self, width: int, ambiguous_gap: float) -> list[tuple[float, Sequence_]] | None:
        """The search without caps, one beam at a time; None where a decision is closer than `ambiguous_gap`.

        W beams inside an item; at the end of the second item and later ones the best 2 W, of which the best order of
        each set, of which W.
        """
        beams: list[tuple[float, Sequence_, tuple[int, ...]]] = [(0.0, (), ())]
        for position in range(self.length):
            for level in range(self._num_levels):
                ends = level == self._num_levels - 1
                compares = ends and position > 0
                grown = sorted(self._grow(beams), reverse=True)
                if _undecided([beam[0] for beam in grown], 2 * width if compares else width, ambiguous_gap):
                    return None
                beams = grown[: 2 * width if compares else width]
                if ends:
                    finished = [(score, (*rows, self._sids.index(codes)), ()) for score, rows, codes in beams]
                    distinct = _first_of_each_set(finished, ambiguous_gap) if compares else finished
                    if distinct is None or _undecided([beam[0] for beam in distinct], width, ambiguous_gap):
                        return None
                    beams = distinct[:width]
        return [(score, rows) for score, rows, _ in beams]

    def _grow(
        self, beams: list[tuple[float, Sequence_, tuple[int, ...]]]
    ) -> Iterable[tuple[float, Sequence_, tuple[int, ...]]]:
        for score, rows, codes in beams:
            level = len(codes)
            for code in {
                self._sids[row][level] for row in self.available if row not in rows and self._sids[row][:level] == codes
            }:
                cost = self.cost(rows, code) if level == 0 else 0.0
                yield score + self.logprob(rows, codes, code) - cost, rows, (*codes, code)

    def cost(self, rows: Sequence_, code: int) -> float:
        """What the penalty grows by with an item of this first code: the same for all of them, so due at once."""
        alike = next(row for row in self.available if self._sids[row][0] == code)
        return self.penalty((*rows, alike)) - self.penalty(rows)


def _undecided(scores: list[float], width: int, gap: float) -> bool:
    return len(scores) > width and scores[width - 1] - scores[width] < gap


def _first_of_each_set(
    beams: list[tuple[float, Sequence_, tuple[int, ...]]], gap: float
) -> list[tuple[float, Sequence_, tuple[int, ...]]] | None:
    first: dict[frozenset[int], tuple[float, Sequence_, tuple[int, ...]]] = {}
    for beam in beams:
        before = first.setdefault(frozenset(beam[1]), beam)
        if before is not beam and before[0] - beam[0] < gap:
            return None
    return list(first.values())
