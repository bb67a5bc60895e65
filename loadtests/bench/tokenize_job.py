"""One tokenizer run in a process of its own, whose peak memory is therefore its own: `python -m` this module.

Arguments: the embeddings (.npy), the system (`balanced` or `plain`), the seed. The last line of output is JSON.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from model_export.tokenizer.assignment import Assignment, assign_catalog, plain_residual_kmeans, reconstruction_errors
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.neighbours import neighbour_figures
from model_export.tokenizer.report import count_collisions

SYSTEMS = ("balanced", "plain")


def measure(embeddings: Path, system: str, seed: int) -> dict[str, Any]:
    """Seconds, peak resident bytes, and what the sids are worth."""
    # resident pages of the map count as this process's memory; only what is copied comes on top
    points_ND = np.load(embeddings, mmap_mode="r")
    config = TokenizerConfig(source="given", seed=seed)
    sizes = config.codebook_sizes(len(points_ND))
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    assignment = _assign(points_ND, sizes, system, config)
    took_s, took_cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sids_NL = assignment.sids_NL
    spans = [int(np.ptp(np.bincount(sids_NL[:, level], minlength=size))) for level, size in enumerate(sizes)]
    neighbours = neighbour_figures(points_ND, sids_NL, seed)
    return {
        "codebook_sizes": list(sizes),
        "took_s": took_s,
        "took_cpu_s": took_cpu_s,
        "peak_bytes": peak_bytes,
        "collisions": count_collisions(sids_NL),
        "size_span": max(spans),
        "error": reconstruction_errors(points_ND, assignment)[-1],
        "neighbours_first_code": neighbours[0]["shared"],
    }


def _assign(points_ND: Any, sizes: tuple[int, ...], system: str, config: TokenizerConfig) -> Assignment:
    if system == "plain":
        return plain_residual_kmeans(points_ND, sizes, iterations=config.kmeans_iterations, seed=config.seed)
    started_s = time.perf_counter()
    return assign_catalog(
        points_ND,
        sizes,
        plain_iterations=config.kmeans_iterations,
        balance_iterations=config.balance_iterations,
        refine_sweeps=config.refine_sweeps,
        seed=config.seed,
        on_step=lambda step: print(f"  {time.perf_counter() - started_s:7.1f} s: {step}", file=sys.stderr, flush=True),
    )


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
