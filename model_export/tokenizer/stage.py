"""The stage `tokenize`: a prepared data set in, semantic IDs and their report out."""

import logging
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from model_export.data.prepared import PreparedData
from model_export.tokenizer.assignment import Assignment, assign_catalog, plain_residual_kmeans
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.embeddings import embed_items
from model_export.tokenizer.report import build_report, count_collisions, write_report
from model_export.tokenizer.tokenization import Tokenization

logger = logging.getLogger(__name__)


def tokenize(config: TokenizerConfig, prepared: PreparedData, out_dir: str | Path) -> Tokenization:
    """Embeds all items, gives each a unique sid, and writes the result and its report to `out_dir`.

    Raises ValueError where the catalog does not fit into the codebooks or the embedding source is empty.
    """
    started_s = time.perf_counter()
    sizes = config.codebook_sizes(prepared.num_items)
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("tokenize: embeddings", total=None)

        def show(step: str) -> None:
            progress.update(task, description=f"tokenize: {step}")
            logger.info("tokenize: %s", step)

        is_train_E = prepared.train_events()
        embedded = embed_items(config, prepared.items, prepared.item_E[is_train_E], prepared.segment_E[is_train_E])
        assignment = assign_catalog(
            embedded.vectors_ND,
            sizes,
            plain_iterations=config.kmeans_iterations,
            balance_iterations=config.balance_iterations,
            refine_sweeps=config.refine_sweeps,
            seed=config.seed,
            on_step=show,
        )
        check_balance(assignment, config.balance_tolerance)
        assign_s = time.perf_counter() - started_s
        show("plain residual k-means, for comparison")
        plain = plain_residual_kmeans(embedded.vectors_ND, sizes, iterations=config.kmeans_iterations, seed=config.seed)
    report = build_report(
        embedded.vectors_ND, assignment, plain, prepared.items, seed=config.seed, parts=embedded.parts_ND
    )
    report["embeddings"] = embedded.facts
    report["took_s"] = {"embed_and_assign": assign_s, "total": time.perf_counter() - started_s}
    result = Tokenization(
        sids_NL=assignment.sids_NL,
        codebooks=assignment.codebooks,
        embeddings_ND=embedded.vectors_ND,
        encoder=embedded.encoder,
        report=report,
    )
    result.save(out_dir)
    write_report(report, Path(out_dir))
    return result


def check_balance(assignment: Assignment, tolerance: int) -> None:
    """Our own promise: unique sids, and code sizes within the tolerance at every level."""
    assert count_collisions(assignment.sids_NL) == 0, "two items share a sid"
    for level, codebook_VD in enumerate(assignment.codebooks):
        sizes_V = np.bincount(assignment.sids_NL[:, level], minlength=len(codebook_VD))
        assert int(np.ptp(sizes_V)) <= tolerance, f"level {level + 1} is out of balance"
