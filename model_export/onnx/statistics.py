"""Reference statistics of slates: what the model's answers look like at export, to compare served slates with.

Legend: B requests, N items, K slate size.
"""

import numpy as np

from model_export.onnx.parity import as_decoded
from model_export.search.eager import Slates
from service.bundle.manifest import Choice, score_keys
from service.catalog import CatalogSnapshot
from service.inference.choice import ranked_beams
from service.inference.runner import Beams


def slate_statistics(slates: Slates, snapshot: CatalogSnapshot, choice: Choice) -> dict[str, float]:
    """Of the slates that would be answered.

    `coverage`: share of the catalog shown; `entropy_bits`: of the items shown; `popular_share`, `cold_share`: of the
    places, that popular items (`CatalogSnapshot.popular_from`) take, and items without training events; `mean_score`:
    of whole slates; `score_mean_<k>`, `score_deviation_<k>` (`score_keys`): of the score per item of the slates cut
    after k items, where there are two such slates at least.
    """
    decoded = as_decoded(slates)
    beams_B = [decoded.of_request(request) for request in range(len(decoded.scores_BW))]
    slate_size = decoded.item_rows_BWK.shape[2]
    best_B = [ranked_beams(beams, slate_size, choice)[0] for beams in beams_B]
    rows = np.concatenate([beams.item_rows_WK[best] for beams, best in zip(beams_B, best_B, strict=True)])
    rows = rows[rows >= 0]
    num_places = max(len(rows), 1)
    counts_N = np.bincount(rows, minlength=snapshot.num_items)
    shares = counts_N[counts_N > 0] / num_places
    events_N = snapshot.popularity_N
    statistics = {
        "coverage": float((counts_N > 0).mean()),
        "entropy_bits": float(-(shares * np.log2(shares)).sum()),
        "popular_share": float(counts_N[events_N >= snapshot.popular_from].sum() / num_places),
        "cold_share": float(counts_N[events_N == 0].sum() / num_places),
        "mean_score": float(np.mean([beams.scores_W[best] for beams, best in zip(beams_B, best_B, strict=True)])),
    }
    for num_items in range(1, slate_size + 1):
        scores = [score for beams in beams_B if (score := _score_per_item(beams, num_items, choice)) is not None]
        if len(scores) > 1:
            mean, deviation = score_keys(num_items)
            statistics |= {mean: float(np.mean(scores)), deviation: float(np.std(scores))}
    return statistics


def _score_per_item(beams: Beams, num_items: int, choice: Choice) -> float | None:
    """Of the slate that is answered when that many items are asked for; None: it has fewer."""
    best = ranked_beams(beams, num_items, choice)[0]
    if not beams.item_valid_WK[best, :num_items].all():
        return None
    return float(beams.level_logprobs_WKL[best, :num_items].sum(dtype=np.float64)) / num_items
