"""Semantic IDs for a whole catalog: balanced at every level, unique for every item, close to the embeddings.

1. A greedy pass: balanced k-means on the residual of the levels before (residual quantisation). A prefix never takes
   more items than sids remain under it, so the last level can always tell its items apart.
2. Sweeps over levels 2..L: each level is re-assigned, under the same constraints, to what all the *other* levels leave
   over, and every codebook is refitted (block coordinate descent on the squared error, as in additive quantisation).
   Balance makes the greedy pass pay at every level; the sweeps take the loss back. Level 1 keeps its codes, so that
   the first code stays a cluster of similar items.

Shapes: N items, L levels, V codes, D width.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_export.tokenizer.balance import CodeArray, FloatArray
from model_export.tokenizer.groups import Groups
from model_export.tokenizer.kmeans import PRICE_STEPS, BalancedCodebook, balanced_kmeans, plain_kmeans

logger = logging.getLogger(__name__)

# the last sweeps are balanced exactly and the best of them is kept; those before are balanced by prices alone
EXACT_SWEEPS = 3


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
    residual_ND = points_ND.astype(np.float32)
    levels: list[BalancedCodebook] = []
    prefix_N: NDArray[np.int64] = np.zeros(len(points_ND), np.int64)
    for level, num_codes in enumerate(codebook_sizes):
        on_step(f"level {level + 1}")
        groups = Groups(prefix_N, math.prod(codebook_sizes[level + 1 :]), num_codes)
        codebook = balanced_kmeans(
            residual_ND,
            num_codes,
            groups,
            plain_iterations=plain_iterations,
            iterations=balance_iterations,
            seed=seed,
            # the sweeps re-assign every level but the first
            exact=level == 0 or refine_sweeps == 0,
        )
        levels.append(codebook)
        residual_ND = residual_ND - codebook.reconstruct()
        prefix_N = dense_rows(np.stack([codebook.codes_N for codebook in levels], axis=1))
    return refine(levels, residual_ND, refine_sweeps, on_step)


def dense_rows(codes_NM: CodeArray) -> NDArray[np.int64]:
    """One dense number per distinct row."""
    if codes_NM.shape[1] == 0:
        return np.zeros(len(codes_NM), np.int64)
    _, dense_N = np.unique(codes_NM, axis=0, return_inverse=True)
    return dense_N.reshape(-1).astype(np.int64)


def refine(
    levels: list[BalancedCodebook], residual_ND: FloatArray, num_sweeps: int, on_step: Callable[[str], None]
) -> Assignment:
    """Sweeps over the levels; returns the best exactly balanced assignment seen."""
    best, best_error = snapshot(levels), math.inf
    for sweep in range(num_sweeps if len(levels) > 1 else 0):
        on_step(f"sweep {sweep + 1}/{num_sweeps}")
        exact = sweep >= num_sweeps - EXACT_SWEEPS
        for index, codebook in enumerate(levels):
            target_ND = residual_ND + codebook.reconstruct()
            if index > 0:
                others_NM = np.stack([other.codes_N for other in levels if other is not codebook], axis=1)
                groups = Groups(dense_rows(others_NM), 1, len(codebook.centroids_VD))
                codebook.assign(target_ND, groups, price_steps=PRICE_STEPS, exact=exact)
            codebook.fit_centroids(target_ND)
            residual_ND = target_ND - codebook.reconstruct()
        error = float(np.square(residual_ND, dtype=np.float64).sum())
        if exact and error < best_error:
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
    residual_ND = points_ND.astype(np.float32)
    codes: list[CodeArray] = []
    codebooks: list[FloatArray] = []
    for num_codes in codebook_sizes:
        centroids_VD, codes_N, _ = plain_kmeans(residual_ND, num_codes, iterations=iterations, seed=seed)
        residual_ND = residual_ND - centroids_VD[codes_N]
        codes.append(codes_N)
        codebooks.append(centroids_VD)
    return Assignment(sids_NL=np.stack(codes, axis=1), codebooks=tuple(codebooks))


def reconstruction_errors(points_ND: FloatArray, assignment: Assignment) -> list[float]:
    """Mean squared error after the first 1, 2, ... L codes."""
    residual_ND = points_ND.astype(np.float32)
    errors = []
    for level, codebook_VD in enumerate(assignment.codebooks):
        residual_ND = residual_ND - codebook_VD[assignment.sids_NL[:, level]]
        errors.append(float(np.square(residual_ND, dtype=np.float64).sum() / len(points_ND)))
    return errors
