"""What a bundle says of the slates that its model answered at export."""

import math

import numpy as np
import pytest
import torch

from model_export.onnx.statistics import slate_statistics
from model_export.search.eager import Slates
from service.bundle.manifest import Choice, score_keys
from service.catalog import CatalogSnapshot
from service.health import SlateHealth
from service.inference.choice import slates_of
from service.inference.fake_runner import fake_catalog, fake_manifest
from service.inference.runner import NO_ROW, Beams
from service.metrics import DIRECTIONS, Metrics

FULL = fake_catalog(20)
EVENTS = np.array([100, 50, *[9] * 8, *[0] * 10])
CATALOG = CatalogSnapshot.build(
    FULL.items, FULL.sids_NL, popularity_N=EVENTS[[int(item.item_id[5:]) for item in FULL.items]]
)


def rows(*numbers: int) -> list[int]:
    found = [CATALOG.row_of(f"item-{number}") if number >= 0 else NO_ROW for number in numbers]
    return [row for row in found if row is not None]


def slates(item_logprobs: list[list[list[float]]], numbers: list[list[list[int]]], rewards: object = None) -> Slates:
    """Requests x beams x items; all of an item's logprob is its first code's."""
    rows_BWK = torch.tensor([[rows(*beam) for beam in beams] for beams in numbers], dtype=torch.int32)
    logprobs_BWKL = torch.zeros((*rows_BWK.shape, 3))
    logprobs_BWKL[..., 0] = torch.tensor(item_logprobs)
    return Slates(
        item_rows_BWK=rows_BWK,
        item_valid_BWK=rows_BWK != NO_ROW,
        level_logprobs_BWKL=logprobs_BWKL,
        scores_BW=logprobs_BWKL.sum((2, 3)),
        item_rewards_BWK=None if rewards is None else torch.tensor(rewards),
    )


TWO = slates(
    [[[-2.0, -2.0], [-1.0, -5.0]], [[-4.0, -4.0], [-5.0, -5.0]]],
    [[[0, 10], [1, 2]], [[3, 11], [0, 1]]],
)


def test_shares_are_of_the_best_slates_places() -> None:
    found = slate_statistics(TWO, CATALOG, "score")
    assert (found["popular_share"], found["cold_share"]) == (0.25, 0.5)
    assert (found["coverage"], found["entropy_bits"], found["mean_score"]) == (4 / 20, 2.0, -6.0)


def test_scores_are_of_the_slates_that_each_length_would_get() -> None:
    found = slate_statistics(TWO, CATALOG, "score")
    # One item: the first request's other beam is better. Two items: -2 and -4 an item.
    expected = {1: (-2.5, 1.5), 2: (-3.0, 1.0)}
    assert {n: tuple(found[key] for key in score_keys(n)) for n in (1, 2)} == expected


def test_short_slates_are_not_compared_and_one_alone_has_no_deviation() -> None:
    short = slates([[[-2.0, -2.0]], [[-4.0, 0.0]]], [[[0, 10]], [[3, NO_ROW]]])
    found = slate_statistics(short, CATALOG, "score")
    assert found[score_keys(1)[0]] == -3.0
    assert set(score_keys(2)).isdisjoint(found)
    assert found["cold_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("choice", ["score", "reward"])
def test_what_is_served_as_at_export_has_not_drifted(choice: Choice) -> None:
    rng = np.random.default_rng(7)
    numbers = [[rng.permutation(20)[:4].tolist() for _ in range(3)] for _ in range(40)]
    logprobs = -rng.exponential(2.0, (40, 3, 4))
    logprobs = np.take_along_axis(logprobs, np.argsort(-logprobs.sum(2), axis=1)[..., None], axis=1)
    decoded = slates(logprobs.tolist(), numbers, rng.random((40, 3, 4)).astype(np.float32).tolist())
    statistics = slate_statistics(decoded, CATALOG, choice)
    manifest = fake_manifest(slate_size=4).model_copy(update={"slate_statistics": statistics})
    for slate_size in range(1, 5):
        metrics = Metrics()
        health = SlateHealth(manifest, CATALOG, metrics)
        for request in range(40):
            beams = beams_of(decoded, request)
            (slate,) = slates_of(beams, CATALOG, slate_size, 1, choice)
            health.observe(slate, beams, CATALOG, is_typical=True)
        of = metrics.registry.get_sample_value
        assert of("oneslate_slates_compared_total") == 40
        above, below = (of("oneslate_slate_score_shift_deviations_total", {"direction": name}) for name in DIRECTIONS)
        assert above is not None
        assert above > 1
        assert above == pytest.approx(below, abs=1e-3)
        if slate_size == 4:
            popular = of("oneslate_items_shown_total", {"popularity": "popular"})
            assert popular == pytest.approx(160 * statistics["popular_share"])
    assert all(math.isfinite(value) for value in statistics.values())


def beams_of(decoded: Slates, request: int) -> Beams:
    assert decoded.item_rewards_BWK is not None
    return Beams(
        item_rows_WK=decoded.item_rows_BWK[request].numpy(),
        item_valid_WK=decoded.item_valid_BWK[request].numpy(),
        level_logprobs_WKL=decoded.level_logprobs_BWKL[request].numpy(),
        scores_W=decoded.scores_BW[request].numpy(),
        item_rewards_WK=decoded.item_rewards_BWK[request].numpy(),
    )
