"""Slates of a generator in its three modes."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from model_export.data.prepared import PreparedData
from model_export.evaluate.generative import MIN_ITEM_BEAM, GenerativeRecommender
from model_export.evaluate.mmr import mmr, relevance
from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.generator import Generator
from model_export.search.eager import BeamSearch
from model_export.train.batches import Collator
from model_export.train.catalog import TrainingCatalog
from model_export.train.stage import TrainedGenerator

NUM_ITEMS, K = 70, 4


def prepared_data(make_prepared: Any, **values: Any) -> PreparedData:
    rng = np.random.default_rng(0)
    prepared: PreparedData = make_prepared(
        [rng.permutation(NUM_ITEMS)[:20].tolist() for _ in range(6)], NUM_ITEMS, slate_size=K, **values
    )
    actions = [{"name": "view", "unit": "", "value_edges": []}]
    items = prepared.items.with_columns(title=pl.lit(""), text=pl.lit(""), group=pl.lit(""))
    return dataclasses.replace(prepared, items=items, meta={**prepared.meta, "actions": actions, "has_times": False})


def generator_for(prepared: PreparedData, slate_size: int) -> TrainedGenerator:
    torch.manual_seed(0)
    config = ModelConfig(
        width=16, num_heads=2, head_width=8, encoder_layers=1, decoder_layers=1, feed_forward_width=16, num_experts=1
    )
    spec = GeneratorSpec(
        codebook_sizes=(9, 9), slate_size=slate_size, history_length=8, value_edges=((),), has_times=False
    )
    generator = Generator(config, spec).eval()
    with torch.no_grad():
        for table in generator.code_tables:
            table.weight.normal_()
    sids_NL = np.stack(np.divmod(np.random.default_rng(1).permutation(81)[:NUM_ITEMS], 9), 1).astype(np.int32)
    return TrainedGenerator(generator=generator, catalog=TrainingCatalog.build(prepared, sids_NL))


@pytest.fixture(scope="module")
def prepared(make_prepared: Any) -> PreparedData:
    return prepared_data(make_prepared, repeat_policy="exclude", unavailable=[3, 4])


def embeddings() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(NUM_ITEMS, 6))


@pytest.mark.parametrize("slate_size", [1, K])
def test_items_are_the_best_first_items_of_one_beam(prepared: PreparedData, slate_size: int) -> None:
    trained, test = generator_for(prepared, slate_size), prepared.examples("test")
    recommender = GenerativeRecommender(trained, prepared, beam_width=6, slate_mode="items")
    slates_EK = recommender.slates(test, K)
    assert (slates_EK == recommender.rank(test, K)).all()
    for row, start, end in zip(slates_EK.tolist(), test.history_start, test.history_end, strict=True):
        assert len(set(row)) == K
        assert not {3, 4, -1} & set(row)
        assert not set(prepared.item_E[start:end].tolist()) & set(row)


def test_a_generator_of_one_item_fills_slates_with_first_items_by_default(prepared: PreparedData) -> None:
    test = prepared.examples("test")
    itemwise = GenerativeRecommender(generator_for(prepared, 1), prepared, beam_width=6)
    assert (itemwise.slates(test, K) == itemwise.rank(test, K)).all()
    sessionwise = GenerativeRecommender(generator_for(prepared, K), prepared, beam_width=6)
    search = BeamSearch(sessionwise._trained.generator, sessionwise._trained.catalog.snapshot)
    collator = sessionwise._collator
    rows_BK = search.decode(
        collator.history(test), beam_width=6, excluded_rows_BX=collator.history_rows(test)
    ).item_rows_BWK[:, 0]
    assert (sessionwise.slates(test, K) == sessionwise._trained.catalog.item_of_row_N[rows_BK.numpy()]).all()
    only_one = GenerativeRecommender(generator_for(prepared, 1), prepared, beam_width=6, slate_mode="session")
    with pytest.raises(ValueError, match="writes slates of 1 items, not 4"):
        only_one.slates(test, K)


def test_mmr_re_ranks_the_beam_by_logprob_and_embedding(prepared: PreparedData) -> None:
    trained, test = generator_for(prepared, 1), prepared.examples("test")
    plain = GenerativeRecommender(trained, prepared, beam_width=6)

    def with_lambda(value: float) -> np.ndarray:
        return GenerativeRecommender(
            trained, prepared, beam_width=6, slate_mode="mmr", embedding_ND=embeddings(), mmr_lambda=value
        ).slates(test, K)

    assert (with_lambda(1.0) == plain.slates(test, K)).all()
    found_EK = with_lambda(0.4)
    assert (found_EK != plain.slates(test, K)).any()
    collator = Collator(prepared, trained.catalog, trained.generator.spec, torch.device("cpu"))
    slates = BeamSearch(trained.generator, trained.catalog.snapshot).decode(
        collator.history(test), beam_width=MIN_ITEM_BEAM, num_items=1, excluded_rows_BX=collator.history_rows(test)
    )
    rows_EW = slates.item_rows_BWK[:, :, 0].numpy()
    # 70 items less two and a history of 19 leave 49 or 50 for a beam of 50.
    live_EW = rows_EW >= 0
    items_EW = trained.catalog.item_of_row_N[rows_EW]
    logprob_EW = slates.level_logprobs_BWKL[:, :, 0].sum(2).numpy()
    place_EK = mmr(relevance(logprob_EW, live_EW), live_EW, embeddings()[items_EW], K, 0.4)
    assert (found_EK == np.take_along_axis(items_EW, place_EK, 1)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slate_mode": "best"}, "slate_mode must be one of session, items, mmr, not 'best'"),
        ({"slate_mode": "mmr"}, "needs embedding_ND and mmr_lambda"),
        ({"slate_mode": "mmr", "embedding_ND": np.ones((69, 2)), "mmr_lambda": 0.5}, "69 rows for 70 items"),
        ({"slate_mode": "mmr", "embedding_ND": np.ones((70, 2)), "mmr_lambda": 1.5}, r"must lie in \[0, 1\], not 1.5"),
    ],
)
def test_unfit_arguments_are_refused(prepared: PreparedData, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerativeRecommender(generator_for(prepared, 1), prepared, beam_width=6, **values)
