"""Items that come after training get a sid from their text alone: legal, their own, and near their neighbours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.preparation import prepare
from model_export.tokenizer.assignment import assign_catalog
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.embeddings import embed_items
from model_export.tokenizer.tokenization import max_branch
from service.bundle.item_encoder import assign_new, item_text

HELD_OUT_SHARE = 0.05
SIZES = (256, 256, 256)


@pytest.mark.parametrize("source", ["text", "fused"])
def test_held_out_items_join_their_neighbours(
    source: str, shared_data: Callable[[str], Path], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    data = prepare(PrepareConfig(format="industrial"), shared_data("industrial"), tmp_path)
    is_held_N = np.zeros(data.num_items, np.bool_)
    is_held_N[np.random.default_rng(0).permutation(data.num_items)[: int(HELD_OUT_SHARE * data.num_items)]] = True
    new_row_N = np.cumsum(~is_held_N) - 1
    is_seen_E = data.train_events() & ~is_held_N[data.item_E]
    config = TokenizerConfig(source=source, refine_sweeps=6, balance_iterations=2)  # type: ignore[arg-type]
    embedded = embed_items(
        config, data.items.filter(~is_held_N), new_row_N[data.item_E[is_seen_E]], data.segment_E[is_seen_E]
    )
    known = assign_catalog(embedded.vectors_ND, SIZES, refine_sweeps=6, balance_iterations=2)
    branches = max_branch(known.sids_NL)

    held = data.items.filter(is_held_N)
    texts = [item_text(*row) for row in held.select("title", "text", "tags").iter_rows()]
    new_ND = embedded.encoder.encode(texts)
    taken = np.unique(known.sids_NL, axis=0)
    new_sids = []
    for vector_D in new_ND:
        sid = assign_new(vector_D, known.codebooks, taken, branches)
        assert not (taken == sid).all(axis=1).any()
        taken = np.unique(np.concatenate([taken, sid[None]]), axis=0)
        new_sids.append(sid)
    # legal: within the codebooks, and no prefix with more children than the graphs have room for
    new_NL = np.stack(new_sids)
    assert (new_NL >= 0).all()
    assert (new_NL < np.array(SIZES)).all()
    assert all(now <= before for now, before in zip(max_branch(taken), branches, strict=True))

    nearest = (new_ND @ embedded.vectors_ND.T).argmax(axis=1)
    shared = (new_NL[:, 0] == known.sids_NL[nearest, 0]).mean()
    record_property("first_code_shared", float(shared))
    within = embedded.vectors_ND @ embedded.vectors_ND.T
    np.fill_diagonal(within, -np.inf)
    usual = (known.sids_NL[:, 0] == known.sids_NL[within.argmax(axis=1), 0]).mean()
    # as often as the items of the catalog share it with theirs, or nearly; by chance one in 256 would
    assert shared > 0.7 * usual
    assert shared > 0.3
