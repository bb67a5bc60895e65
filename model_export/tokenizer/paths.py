"""Exact balance by cheapest chains of moves: the successive-shortest-path step of `balance`.

Nodes are codes. The edge from j to k costs the least extra squared distance at which one item of j can move to k
without breaking a group's capacity. A cheapest chain from a code that holds too many items to one that holds too few
fixes one unit of imbalance. Prices are the potentials that keep the edges' reduced costs at or above zero.

Shapes: N items, V codes, D width.
"""

import numpy as np
from numpy.typing import NDArray

from model_export.tokenizer.balance import CodeArray, FloatArray, code_sizes, squared_distances
from model_export.tokenizer.groups import Groups, IntArray


class Rebalancer:
    """Moves items along cheapest chains until all code sizes are within one of each other."""

    def __init__(
        self, points_ND: FloatArray, centroids_VD: FloatArray, prices_V: FloatArray, codes_N: CodeArray, groups: Groups
    ) -> None:
        self.points_ND, self.centroids_VD, self.groups = points_ND, centroids_VD, groups
        self.codes_N = codes_N.copy()
        self.prices_V = prices_V.astype(np.float64)
        num_codes = len(centroids_VD)
        self.sizes_V = np.bincount(codes_N, minlength=num_codes)
        order = np.argsort(codes_N, kind="stable")
        self.members: list[IntArray] = np.split(order, np.cumsum(self.sizes_V)[:-1])
        self.cost_VV = np.full((num_codes, num_codes), np.inf)
        self.mover_VV = np.full((num_codes, num_codes), -1, np.int64)
        groups.count(self.codes_N)
        self.refresh(np.arange(num_codes))

    def refresh(self, sources: IntArray) -> None:
        """Recomputes the edges out of the given codes."""
        for source in sources:
            items = self.members[source]
            if not len(items):
                self.cost_VV[source] = np.inf
                continue
            distances = squared_distances(self.points_ND[items], self.centroids_VD)
            extra = distances - distances[:, source, None]
            extra[self.groups.is_full(items)] = np.inf
            extra[:, source] = np.inf
            best_V = extra.argmin(axis=0)
            self.mover_VV[source] = items[best_V]
            self.cost_VV[source] = extra[best_V, np.arange(len(best_V))]

    def cheapest_chain(self, is_source_V: NDArray[np.bool_], is_sink_V: NDArray[np.bool_]) -> list[int] | None:
        """Codes of the cheapest chain from any source to any sink (Bellman-Ford on reduced costs), or None."""
        reduced_VV = np.maximum(self.cost_VV - self.prices_V[:, None] + self.prices_V, 0.0)
        distance_V = np.where(is_source_V, 0.0, np.inf)
        parent_V = np.full(len(distance_V), -1)
        changed = np.flatnonzero(is_source_V)
        while len(changed):
            through = distance_V[changed, None] + reduced_VV[changed]
            best = through.argmin(axis=0)
            candidate_V = through[best, np.arange(len(distance_V))]
            better = candidate_V < distance_V
            parent_V[better] = changed[best[better]]
            distance_V[better] = candidate_V[better]
            changed = np.flatnonzero(better)
        # potential differences turn reduced distances back into true costs up to a constant per source
        reach = np.where(is_sink_V, distance_V, np.inf)
        sink = int(reach.argmin())
        if not np.isfinite(reach[sink]):
            return None
        self.prices_V -= np.minimum(distance_V, reach[sink])
        chain = [sink]
        while parent_V[chain[-1]] >= 0:
            chain.append(int(parent_V[chain[-1]]))
        return chain[::-1]

    def follow(self, chain: list[int]) -> None:
        """Moves one item along every link of a chain and recomputes the edges that this changes."""
        touched: set[int] = set(chain)
        for source, target in zip(chain, chain[1:], strict=False):
            item = int(self.mover_VV[source, target])
            self.codes_N[item] = target
            self.groups.move(item, source, target)
            self.members[source] = self.members[source][self.members[source] != item]
            self.members[target] = np.append(self.members[target], item)
            group = self.groups.of_item_N[item]
            if group >= 0:
                touched.update(self.codes_N[self.groups.items_G[group]].tolist())
        self.sizes_V[chain[0]] -= 1
        self.sizes_V[chain[-1]] += 1
        self.refresh(np.array(sorted(touched)))

    def run(self) -> CodeArray:
        """Balances the assignment; returns the codes [N]."""
        smallest, largest = code_sizes(len(self.codes_N), len(self.sizes_V))
        while (is_over := self.sizes_V > largest).any():
            self.improve(is_over, self.sizes_V < largest)
        while (is_under := self.sizes_V < smallest).any():
            self.improve(self.sizes_V > smallest, is_under)
        return self.codes_N

    def improve(self, is_source_V: NDArray[np.bool_], is_sink_V: NDArray[np.bool_]) -> None:
        """Removes one unit of imbalance."""
        chain = self.cheapest_chain(is_source_V, is_sink_V)
        if chain is None:
            self.refresh(np.arange(len(self.sizes_V)))
            chain = self.cheapest_chain(is_source_V, is_sink_V)
        assert chain is not None, "a legal balanced assignment exists but no chain leads to it"
        self.follow(chain)
