"""Semantic IDs for a whole catalog: balanced at every level, unique for every item, close to the embeddings.

1. A greedy pass: balanced k-means on the residual of the levels before (residual quantisation). A prefix never takes
   more items than sids remain under it, so the last level can always tell its items apart.
2. Sweeps over levels 2..L: each level is re-assigned, under the same constraints, to what all the *other* levels leave
   over, and every codebook is refitted (block coordinate descent on the squared error, as in additive quantisation).
   Balance makes the greedy pass pay at every level; the sweeps take the loss back. Level 1 keeps its codes, so that
   the first code stays a cluster of similar items.

Codebooks of a catalog of more than MAX_TRAIN_ITEMS are learnt from a sample in that way; then all items are assigned
level by level and swept a few times more, chunk by chunk: beside the embeddings, which may be a memory map, nothing of
their size is ever held.

Shapes: N items, L levels, V codes, D width.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model_export.tokenizer.balance import chunks
from model_export.tokenizer.groups import Groups, dense_rows
from model_export.tokenizer.kmeans import (
    BalancedCodebook,
    balanced_kmeans,
    plain_kmeans,
    squared_error,
    train_rows,
)
from model_export.tokenizer.targets import CodeArray, FloatArray, Targets

logger = logging.getLogger(__name__)

# the last sweeps are balanced exactly and the best of them is kept; those before are balanced by prices alone
EXACT_SWEEPS = 3
# sweeps of a catalog larger than its training sample: over the sample, then over all items, of these the last exact
MAX_SAMPLE_SWEEPS = 8
MAX_FULL_SWEEPS = 3


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Sids [N, L] int32 and one codebook [V_l, D] float32 per level."""

    sids_NL: CodeArray
    codebooks: tuple[FloatArray, ...]


def assign_catalog(
    points_ND: FloatArray,
    codebook_sizes: Sequence[int],
    *,
    plain_iterations: int = 20,
    balance_iterations: int = 6,
    refine_sweeps: int = 24,
    seed: int = 0,
    on_step: Callable[[str], None] = logger.debug,
) -> Assignment:
    """Unique sids with code sizes within one of each other at every level.

    Raises ValueError where there are more items than sids.
    """
    num_sids = math.prod(codebook_sizes)
    if not 1 <= len(points_ND) <= num_sids:
        raise ValueError(f"{len(points_ND)} items do not fit into {num_sids} semantic IDs of sizes {codebook_sizes}")
    rows = train_rows(len(points_ND), seed)
    is_sample = len(rows) < len(points_ND)
    train_RD = np.asarray(points_ND[rows], np.float32) if is_sample else points_ND
    levels: list[BalancedCodebook] = []
    for level, num_codes in enumerate(codebook_sizes):
        on_step(f"level {level + 1}")
        codebook = balanced_kmeans(
            Targets(train_RD, pairs(levels)),
            num_codes,
            # what a sample takes tells nothing of how crowded the whole will be
            no_groups(len(train_RD), num_codes) if is_sample else prefix_groups(levels, codebook_sizes, len(train_RD)),
            plain_iterations=plain_iterations,
            iterations=balance_iterations,
            seed=seed,
            # the sweeps re-assign every level but the first
            exact=not is_sample and (level == 0 or refine_sweeps == 0),
        )
        levels.append(codebook)
    if not is_sample:
        return refine(levels, points_ND, refine_sweeps, on_step)
    refine(levels, train_RD, min(refine_sweeps, MAX_SAMPLE_SWEEPS), on_step, is_sample=True)
    del train_RD
    for level, codebook in enumerate(levels):
        on_step(f"level {level + 1} of all items")
        targets, groups = (
            Targets(points_ND, pairs(levels[:level])),
            prefix_groups(levels[:level], codebook_sizes, len(points_ND)),
        )
        codebook.assign(targets, groups, exact=level == 0 or refine_sweeps == 0, from_nothing=level == 0)
        codebook.fit_centroids(targets)
    return refine(levels, points_ND, min(refine_sweeps, MAX_FULL_SWEEPS), on_step, exact_sweeps=1)


def pairs(levels: Sequence[BalancedCodebook]) -> list[tuple[FloatArray, CodeArray]]:
    """Centroids and codes of some levels, as `Targets` subtracts them."""
    return [(codebook.centroids_VD, codebook.codes_N) for codebook in levels]


def no_groups(num_items: int, num_codes: int) -> Groups:
    """Groups that forbid nothing."""
    return Groups(np.arange(num_items), 1, num_codes)


def prefix_groups(levels: Sequence[BalancedCodebook], codebook_sizes: Sequence[int], num_items: int) -> Groups:
    """The groups of the level after `levels`: no prefix may take more items than sids remain under it."""
    level = len(levels)
    if level == 0:
        # balance alone keeps the first codes from taking too many
        return no_groups(num_items, codebook_sizes[0])
    prefixes = np.stack([codebook.codes_N for codebook in levels], axis=1)
    return Groups(dense_rows(prefixes), math.prod(codebook_sizes[level + 1 :]), codebook_sizes[level])


def refine(
    levels: list[BalancedCodebook],
    points_ND: FloatArray,
    num_sweeps: int,
    on_step: Callable[[str], None],
    *,
    exact_sweeps: int = EXACT_SWEEPS,
    is_sample: bool = False,
) -> Assignment:
    """Sweeps over the levels; returns the best exactly balanced assignment seen.

    The sids of a sample are neither unique nor exactly balanced: only its codebooks count.
    """
    best, best_error = snapshot(levels), math.inf
    for sweep in range(num_sweeps if len(levels) > 1 else 0):
        on_step(f"sweep {sweep + 1}/{num_sweeps} of {len(points_ND)} items")
        exact = not is_sample and sweep >= num_sweeps - exact_sweeps
        for index, codebook in enumerate(levels):
            others = [other for other in levels if other is not codebook]
            targets = Targets(points_ND, pairs(others))
            if index > 0:
                num_codes = len(codebook.centroids_VD)
                prefixes = np.stack([other.codes_N for other in others], axis=1)
                groups = (
                    no_groups(len(points_ND), num_codes) if is_sample else Groups(dense_rows(prefixes), 1, num_codes)
                )
                codebook.assign(targets, groups, exact=exact)
            codebook.fit_centroids(targets)
        if exact:
            error = squared_error(targets, levels[-1].codes_N, levels[-1].centroids_VD)
            if error < best_error:
                best, best_error = snapshot(levels), error
    return best


def snapshot(levels: Sequence[BalancedCodebook]) -> Assignment:
    """Copies the codes and centroids of all levels."""
    return Assignment(
        sids_NL=np.stack([codebook.codes_N for codebook in levels], axis=1).astype(np.int32),
        codebooks=tuple(codebook.centroids_VD.copy() for codebook in levels),
    )


def plain_residual_kmeans(
    points_ND: FloatArray, codebook_sizes: Sequence[int], *, iterations: int = 20, seed: int = 0
) -> Assignment:
    """The baseline: plain k-means on the residuals of the levels before; neither balanced nor free of collisions."""
    levels: list[tuple[FloatArray, CodeArray]] = []
    for num_codes in codebook_sizes:
        levels.append(plain_kmeans(Targets(points_ND, levels), num_codes, iterations=iterations, seed=seed))
    return Assignment(
        sids_NL=np.stack([codes_N for _, codes_N in levels], axis=1),
        codebooks=tuple(centroids_VD for centroids_VD, _ in levels),
    )


def reconstruction_errors(points_ND: FloatArray, assignment: Assignment) -> list[float]:
    """Mean squared error after the first 1, 2, ... L codes."""
    error_L = np.zeros(len(assignment.codebooks))
    for chunk in chunks(len(points_ND), points_ND.shape[1]):
        left_RD = np.asarray(points_ND[chunk], np.float32)
        for level, codebook_VD in enumerate(assignment.codebooks):
            left_RD = left_RD - codebook_VD[assignment.sids_NL[chunk, level]]
            error_L[level] += float(np.square(left_RD, dtype=np.float64).sum())
    return [float(error) / len(points_ND) for error in error_L]
