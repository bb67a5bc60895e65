"""The noise of the sampler: uniform over seeds and codes, and no number tells of its neighbours."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from model_export.search.noise import PRIMES, StartNoise, after_code, gumbel, mixed, modulo, uniform
from service.inference.feeds import seed_words

NUM_SEEDS = 100_000
NUM_CODES = 6
LOWEST = 1e-4
"""Of the p-values: everything here is fixed, so what passes once passes always."""


def states(seeds: npt.NDArray[np.int64], *codes: int) -> torch.Tensor:
    """[B, 1, S] after the codes."""
    state_B1S: torch.Tensor = StartNoise()(torch.from_numpy(seed_words(seeds)))
    for code in codes:
        state_B1S = after_code(state_B1S, torch.full(state_B1S.shape[:2], code, dtype=torch.int32))
    return state_B1S


def numbers(seeds: npt.NDArray[np.int64], *codes: int, num_codes: int = NUM_CODES) -> npt.NDArray[np.float32]:
    """The children's numbers [B, C] after the codes."""
    code_1C = torch.arange(num_codes, dtype=torch.int32).expand(1, 1, -1)
    drawn: npt.NDArray[np.float32] = uniform(states(seeds, *codes), code_1C)[:, 0].numpy()
    return drawn


SEEDS = np.arange(NUM_SEEDS)
SPREAD = np.random.default_rng(0).integers(0, 2**32, NUM_SEEDS)


@pytest.mark.parametrize("seeds", [SEEDS, SPREAD], ids=["neighbours", "spread"])
@pytest.mark.parametrize("codes", [(), (3,), (0, 0, 0, 7, 1)])
def test_numbers_are_uniform_and_siblings_independent(seeds: npt.NDArray[np.int64], codes: tuple[int, ...]) -> None:
    drawn_BC = numbers(seeds, *codes)
    assert 0 < drawn_BC.min() < 1e-4
    assert drawn_BC.max() <= 1
    for code in range(NUM_CODES):
        assert stats.chisquare(np.histogram(drawn_BC[:, code], 200, (0, 1))[0]).pvalue > LOWEST
    for one, other in itertools.combinations(range(NUM_CODES), 2):
        assert_independent(drawn_BC[:, one], drawn_BC[:, other])
    # Which of five siblings comes first, second, third.
    order_B3 = np.argsort(-drawn_BC[:, :5], axis=1)[:, :3] @ np.array([25, 5, 1])
    counts = np.bincount(order_B3, minlength=125)
    assert stats.chisquare(counts[counts > 0]).pvalue > LOWEST
    assert (counts > 0).sum() == 60


def test_the_largest_of_many_siblings_is_distributed_as_it_should_be() -> None:
    drawn_BC = numbers(SEEDS[:20_000], 5, num_codes=256)
    assert stats.kstest(drawn_BC.max(1) ** 256, "uniform").pvalue > LOWEST
    assert stats.chisquare(np.bincount(drawn_BC.argmax(1), minlength=256)).pvalue > LOWEST
    for lag in (1, 2, 3, 64):
        correlation = np.corrcoef(drawn_BC[:, :-lag].ravel(), drawn_BC[:, lag:].ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(drawn_BC[:, lag:].size)


def test_neighbouring_seeds_have_nothing_in_common() -> None:
    drawn_BC = numbers(SEEDS)
    for lag in (1, 2, 2011, 2011**2 % NUM_SEEDS):
        assert_independent(drawn_BC[lag:, 0], drawn_BC[:-lag, 0])
        assert_independent(drawn_BC[lag:, 1], drawn_BC[:-lag, 0])


def test_levels_and_prefixes_have_nothing_in_common() -> None:
    root_BC, below_BC, beside_BC = numbers(SEEDS), numbers(SEEDS, 1), numbers(SEEDS, 2)
    deep_BC, swapped_BC = numbers(SEEDS, 1, 2), numbers(SEEDS, 2, 1)
    for one, other in itertools.combinations((root_BC, below_BC, beside_BC, deep_BC, swapped_BC), 2):
        for code in range(NUM_CODES):
            assert_independent(one[:, 1], other[:, code])


def assert_independent(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> None:
    counts = np.histogram2d(one, other, bins=15, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > LOWEST


def test_no_seed_starts_as_another() -> None:
    seeds = np.concatenate([SEEDS, SPREAD, [2**32 - 1]])
    assert len(np.unique(states(seeds)[:, 0].numpy(), axis=0)) == len(np.unique(seeds))


def test_codes_that_agree_modulo_one_prime_differ() -> None:
    codes = torch.tensor([[[5, 5 + PRIMES[0], 5 + PRIMES[1], 5 + 2 * PRIMES[0], 8191]]], dtype=torch.int32)
    drawn = uniform(states(SEEDS[:1000]), codes)[:, 0].numpy()
    assert all(len(set(row)) == 5 for row in drawn.tolist())


def test_no_step_leaves_what_float32_divides_exactly() -> None:
    """OpenVINO divides integers as float32; tests/integration runs every number there."""
    largest = (max(PRIMES) - 1) ** 2 + 3 * max(PRIMES)
    assert largest < 2**24
    for prime in PRIMES:
        edges = np.arange(1, largest // prime + 2)[:, None] * prime + np.array([-1, 0, 1])
        quotient = np.floor(edges.astype(np.float32) / np.float32(prime)).astype(np.int64)
        assert (quotient == edges // prime).all()


def test_words_stay_below_their_primes() -> None:
    highest = torch.tensor([[prime - 1 for prime in PRIMES]], dtype=torch.int32)
    for state in (highest, torch.zeros_like(highest), states(SPREAD)[:, 0]):
        stirred = mixed(state)
        assert stirred.dtype == torch.int32
        assert ((stirred >= 0) & (stirred < torch.tensor(PRIMES))).all()
    assert modulo(torch.tensor([0, 6, 7, 13]), torch.tensor(7)).tolist() == [0, 6, 0, 6]


def test_gumbel_noise_has_the_right_quantiles_to_the_far_end() -> None:
    share = np.array([6e-11, 1e-9, 1e-6, 1e-3, 1 / 64, 0.02, 0.5, 0.9, 0.999])
    found = gumbel(torch.from_numpy(share.astype(np.float32))).numpy()
    np.testing.assert_allclose(found, -np.log(-np.log1p(-share.astype(np.float32).astype(float))), atol=2e-5)
    assert np.isfinite(gumbel(torch.tensor([1.0])).item())
    noise = gumbel(torch.from_numpy(numbers(SEEDS))).numpy().ravel()
    assert stats.kstest(noise[::6], "gumbel_r").pvalue > LOWEST
