"""Exact balance by cheapest chains of moves: the successive-shortest-path step of `balance`.

Nodes are codes. The edge from j to k costs the least extra squared distance at which one item of j can move to k
without breaking a group's capacity. A cheapest chain from a code that holds too many items to one that holds too few
fixes one unit of imbalance. Prices are the potentials that keep the edges' reduced costs at or above zero.

Shapes: N items, V codes, D width.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from model_export.tokenizer.balance import PricedCodes, code_sizes
from model_export.tokenizer.groups import Groups
from model_export.tokenizer.targets import CodeArray, FloatArray, IntArray, Targets


class Rebalancer:
    """Moves items along cheapest chains until all code sizes are within one of each other.

    `cost_VV[j, k]` is the edge from j to k and `mover_VV[j, k]` the item that would move; both are kept up to date
    move by move, except that a code which a group has just freed is offered to the group's other items only when no
    chain is left without it.
    """

    def __init__(
        self, targets: Targets, centroids_VD: FloatArray, prices_V: FloatArray, codes_N: CodeArray, groups: Groups
    ) -> None:
        self.targets, self.groups = targets, groups
        self.level = PricedCodes(centroids_VD)
        self.every_code = np.arange(len(centroids_VD))
        self.codes_N = codes_N.copy()
        self.prices_V = prices_V.astype(np.float64)
        num_codes = len(centroids_VD)
        self.sizes_V = np.bincount(codes_N, minlength=num_codes)
        order = np.argsort(codes_N, kind="stable")
        self.members: list[IntArray] = np.split(order, np.cumsum(self.sizes_V)[:-1])
        self.cost_VV = np.full((num_codes, num_codes), np.inf)
        self.mover_VV = np.full((num_codes, num_codes), -1, np.int64)
        groups.watch(self.codes_N)

    def run(self) -> CodeArray:
        """Balances the assignment; returns the codes [N]."""
        smallest, largest = code_sizes(len(self.codes_N), len(self.sizes_V))
        if self.sizes_V.max() > largest or self.sizes_V.min() < smallest:
            self.refresh_all()
        while (is_over := self.sizes_V > largest).any():
            self.improve(is_over, self.sizes_V < largest)
        while (is_under := self.sizes_V < smallest).any():
            self.improve(self.sizes_V > smallest, is_under)
        return self.codes_N

    def improve(self, is_source_V: NDArray[np.bool_], is_sink_V: NDArray[np.bool_]) -> None:
        """Removes one unit of imbalance."""
        chain = self.cheapest_chain(is_source_V, is_sink_V)
        if chain is None:
            self.refresh_all()
            chain = self.cheapest_chain(is_source_V, is_sink_V)
        assert chain is not None, "a legal balanced assignment exists but no chain leads to it"
        self.sizes_V[chain[0]] -= 1
        self.sizes_V[chain[-1]] += 1
        links = list(itertools.pairwise(chain))
        # movers first: a move may change which item is the cheapest on a later link
        movers = [int(self.mover_VV[link]) for link in links]
        for item, (source, target) in zip(movers, links, strict=True):
            self.move(item, source, target)

    def cheapest_chain(self, is_source_V: NDArray[np.bool_], is_sink_V: NDArray[np.bool_]) -> list[int] | None:
        """Codes of the cheapest chain from any source to any sink (Bellman-Ford on reduced costs), or None."""
        reduced_VV = self.cost_VV - self.prices_V[:, None]
        reduced_VV += self.prices_V
        np.maximum(reduced_VV, 0.0, out=reduced_VV)
        distance_V = np.where(is_source_V, 0.0, np.inf)
        parent_V = np.full(len(distance_V), -1)
        changed = np.flatnonzero(is_source_V)
        while len(changed):
            through = reduced_VV[changed] + distance_V[changed, None]
            candidate_V = through.min(axis=0)
            # a code no nearer than the nearest sink cannot lie on the way to it
            bound = distance_V[is_sink_V].min()
            better = np.flatnonzero((candidate_V < distance_V) & (candidate_V < bound))
            parent_V[better] = changed[through[:, better].argmin(axis=0)]
            distance_V[better] = candidate_V[better]
            changed = better
        sink = int(np.where(is_sink_V, distance_V, np.inf).argmin())
        if not np.isfinite(distance_V[sink]):
            return None
        # Johnson's potentials: reduced costs stay at or above zero for the next chain
        self.prices_V -= np.minimum(distance_V, distance_V[sink])
        chain = [sink]
        while parent_V[chain[-1]] >= 0:
            chain.append(int(parent_V[chain[-1]]))
        return chain[::-1]

    def move(self, item: int, source: int, target: int) -> None:
        """Gives one item another code and updates the edges that this changes."""
        self.codes_N[item] = target
        self.members[source] = self.members[source][self.members[source] != item]
        self.members[target] = np.append(self.members[target], item)
        self.refresh(source, np.flatnonzero(self.mover_VV[source] == item))
        self.offer(item, target)
        mates = self.groups.mates(item)
        for code in self.codes_N[mates[self.mover_VV[self.codes_N[mates], target] == mates]]:
            self.refresh(int(code), np.array([target]))

    def refresh_all(self) -> None:
        """Recomputes every edge."""
        for source in range(len(self.members)):
            self.refresh(source, self.every_code)

    def refresh(self, source: int, targets: IntArray) -> None:
        """Recomputes the edges from one code to others."""
        items = self.members[source]
        if not len(items) or not len(targets):
            self.cost_VV[source, targets] = np.inf
            return
        extra = self.extra_cost(items, source, targets)
        best = extra.argmin(axis=0)
        self.mover_VV[source, targets] = items[best]
        self.cost_VV[source, targets] = extra[best, np.arange(len(best))]

    def offer(self, item: int, source: int) -> None:
        """Lets an item that has just come to a code compete for the edges out of it."""
        extra_V = self.extra_cost(np.array([item]), source, self.every_code)[0]
        cheaper = extra_V < self.cost_VV[source]
        self.cost_VV[source, cheaper] = extra_V[cheaper]
        self.mover_VV[source, cheaper] = item

    def extra_cost(self, items: IntArray, source: int, targets: IntArray) -> FloatArray:
        """What it costs the items of one code to move to others [len(items), len(targets)]; inf where not allowed."""
        points = self.targets.rows(items)
        # as a slice, all codes need no copy of their centroids
        extra = self.level.distances(points, slice(None) if targets is self.every_code else targets)
        extra -= self.level.distances(points, slice(source, source + 1))
        extra[:, targets == source] = np.inf
        self.groups.forbid(items, targets, extra)
        return extra
