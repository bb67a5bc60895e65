"""The gates of the harness on real data: below them it is broken, whatever else it says."""

from pathlib import Path

import pytest

from model_export.data.config import PrepareConfig
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from model_export.evaluate.baselines.cooccurrence import Cooccurrence
from model_export.evaluate.baselines.popularity import Popularity
from model_export.evaluate.metrics import item_metrics
from model_export.evaluate.sequences import first_targets


@pytest.fixture(scope="module")
def industrial(shared_data, tmp_path_factory) -> PreparedData:
    folder: Path = shared_data("industrial")
    return prepare(PrepareConfig(format="industrial"), folder, tmp_path_factory.mktemp("industrial"))


def figures_on_test(recommender, prepared) -> tuple[float, float]:
    """HR@10 and NDCG@10 on test."""
    examples = prepared.examples("test")
    found = item_metrics(recommender.rank(examples, 10), first_targets(prepared, examples), (10,))
    return float(found["recall@10"].mean()), float(found["ndcg@10"].mean())


def test_popularity_on_industrial(industrial):
    assert figures_on_test(Popularity(industrial), industrial) == pytest.approx((0.0567, 0.0411), abs=0.0002)


def test_cooccurrence_gate_on_industrial(industrial):
    recall, ndcg = figures_on_test(Cooccurrence(industrial), industrial)
    assert recall == pytest.approx(0.143, abs=0.005)
    assert ndcg == pytest.approx(0.104, abs=0.004)


def test_validation_events_are_worth_much_to_cooccurrence_on_industrial(industrial):
    refit = industrial.refit()
    recall, ndcg = figures_on_test(Cooccurrence(refit), refit)
    assert (recall, ndcg) == pytest.approx((0.1575, 0.1121), abs=0.001)
