"""A request's answer does not depend on who shares its batch."""

import numpy as np
import pytest
from exported_graphs import TOLERANCE, Exported, arrays, as_batch, take_requests
from search_problems import Problem, random_problem

from service.inference.runner import Decoded, Runner

NUM_REQUESTS = 12


def some_requests(exported: Exported, seed: int, padding: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    while True:
        problem = random_problem(rng, exported.codebook_sizes, NUM_REQUESTS, 60, 6, padding, has_caps=True)
        if problem.catalog.num_items > 20 and problem.allowed_FN.mean() > 0.3:
            return problem


def mismatches(runner: Runner, problem: Problem, batch_size: int, beam_width: int, seed: int) -> tuple[int, int]:
    """Requests whose answer changed in any bit in the company of others or at another place; and all compared."""
    rng = np.random.default_rng(seed)
    first: dict[int, list[bytes]] = {}
    changed = compared = 0
    for _ in range(12):
        places = rng.integers(0, NUM_REQUESTS, batch_size)
        decoded = runner.run(as_batch(_fixed_width(problem, places), beam_width))
        for at, request in enumerate(places.tolist()):
            answer = [array[at].tobytes() for array in arrays(decoded)]
            compared += request in first
            changed += first.setdefault(request, answer) != answer
    return changed, compared


def _fixed_width(problem: Problem, places: np.ndarray) -> Problem:
    """The requests with an equally wide array of exclusions, as a bucket would give them."""
    return _Padded(**{name: getattr(take_requests(problem, places), name) for name in Problem.__dataclass_fields__})


class _Padded(Problem):
    @property
    def excluded_BX(self):  # type: ignore[no-untyped-def]
        import torch

        rows_BX = super().excluded_BX
        return torch.nn.functional.pad(rows_BX, (0, 64 - rows_BX.shape[1]), value=-1)


@pytest.mark.parametrize("batch_size", [2, 4, 8])
@pytest.mark.parametrize("beam_width", [1, 2, 5, 20])
def test_neighbours_change_no_bit(exported: Exported, batch_size: int, beam_width: int) -> None:
    problem = some_requests(exported, seed=batch_size)
    changed, compared = mismatches(exported.runner, problem, batch_size, beam_width, seed=beam_width)
    assert compared > 8
    assert changed == 0


def test_neighbours_change_no_bit_on_two_threads(mixture: Exported) -> None:
    changed, compared = mismatches(mixture.another_runner(2), some_requests(mixture, seed=9), 8, 5, seed=0)
    assert compared > 50
    assert changed == 0


def close(one: Decoded, other: Decoded) -> None:
    np.testing.assert_allclose(one.scores_BW, other.scores_BW, atol=9 * TOLERANCE, rtol=1e-6)
    same_BW = (one.item_rows_BWK == other.item_rows_BWK).all(2)
    assert same_BW[:, 0].mean() > 0.9
    np.testing.assert_allclose(
        one.level_logprobs_BWKL[same_BW], other.level_logprobs_BWKL[same_BW], atol=TOLERANCE, rtol=0
    )


def test_the_size_of_the_batch_changes_no_more_than_the_tolerance(exported: Exported) -> None:
    problem = some_requests(exported, seed=1)
    together = exported.runner.run(as_batch(problem, 5))
    alone = [exported.runner.run(as_batch(take_requests(problem, np.array([at])), 5)) for at in range(NUM_REQUESTS)]
    joined = [np.concatenate(parts) for parts in zip(*map(arrays, alone), strict=True)]
    close(
        together,
        Decoded(item_rows_BWK=joined[0], item_valid_BWK=joined[1], level_logprobs_BWKL=joined[2], scores_BW=joined[3]),
    )


def test_the_padding_of_histories_changes_no_more_than_the_tolerance(exported: Exported) -> None:
    plain, padded = (some_requests(exported, seed=2, padding=padding) for padding in (0, 10))
    assert plain.history.codes_BTL.shape[1] + 10 == padded.history.codes_BTL.shape[1]
    close(*(exported.runner.run(as_batch(problem, 5)) for problem in (plain, padded)))
