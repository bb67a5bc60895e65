"""The graph that explains: along any slate that the generator wrote it gives the generator's own logprobs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exported_graphs import TOLERANCE, Exported, as_batch, eager
from search_problems import Problem, random_problem

from model_export.onnx.variants import explained_difference
from model_export.search.driver import trie_inputs
from model_export.search.eager import BeamSearch
from model_export.search.forced import ForcedPieces
from service.inference.runner import DEAD_SCORE, Runner


def problems(exported: Exported, count: int) -> list[Problem]:
    rng = np.random.default_rng(6)
    return [
        random_problem(
            rng,
            exported.codebook_sizes,
            num_requests=(1, 2, 5)[number % 3],
            most_items=(2, 6, 30, 70)[number % 4],
            longest_history=(0, 4, 11)[number % 3],
            padding=(0, 3)[number % 2],
        )
        for number in range(count)
    ]


def check(exported: Exported, problem: Problem, runner: Runner) -> int:
    """Explains every beam of every request; returns how many live ones there were."""
    batch = as_batch(problem, 4)
    decoded, num_live = runner.run(batch), 0
    for beam in range(4):
        forced_BK = np.ascontiguousarray(decoded.item_rows_BWK[:, beam])
        found = runner.run(replace(batch, purpose="explain", forced_rows_BK=forced_BK))
        np.testing.assert_array_equal(found.item_rows_BWK[:, 0], forced_BK)
        np.testing.assert_array_equal(found.item_valid_BWK[:, 0], forced_BK >= 0)
        logprobs_BKL = decoded.level_logprobs_BWKL[:, beam]
        np.testing.assert_allclose(found.level_logprobs_BWKL[:, 0], logprobs_BKL, atol=TOLERANCE)
        live_B = decoded.scores_BW[:, beam] > DEAD_SCORE / 2
        np.testing.assert_allclose(found.scores_BW[live_B, 0], decoded.scores_BW[live_B, beam], atol=9 * TOLERANCE)
        num_live += int(live_B.sum())
        codes_BKLR, logprobs_BKLR = found.runner_up_codes_BKLR, found.runner_up_logprobs_BKLR
        assert codes_BKLR is not None
        assert logprobs_BKLR is not None
        assert (np.diff(logprobs_BKLR, axis=3) <= 0).all()
        assert ((codes_BKLR < 0) == (logprobs_BKLR == DEAD_SCORE)).all()
        # The same search on tensors, which is held to exhaustive scoring elsewhere.
        expected = _eager_runner_ups(exported, problem, torch.from_numpy(forced_BK))
        np.testing.assert_allclose(logprobs_BKLR, expected, atol=TOLERANCE)
    return num_live


def _eager_runner_ups(exported: Exported, problem: Problem, forced_BK: torch.Tensor) -> Any:
    forced: list[Any] = []

    class Forcing(BeamSearch):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            num_levels = self.generator.spec.num_levels
            trie = {name: self._inputs[name] for name in trie_inputs(num_levels)}
            self._pieces: Any = ForcedPieces(self._pieces, forced_BK, trie, num_levels)
            forced.append(self._pieces)

    eager(exported, problem, 1, Forcing)
    return forced[0].runner_ups()["runner_up_logprobs"].numpy()


def test_every_beam_has_the_generators_logprobs_and_legal_runner_ups(exported: Exported) -> None:
    num_live = sum(check(exported, problem, exported.runner) for problem in problems(exported, 12))
    assert num_live > 30


@pytest.mark.parametrize("name", ["dense", "dense_vectors"])
def test_openvino_explains_as_well(name: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    assert sum(check(exported, problem, exported.in_openvino()) for problem in problems(exported, 6)) > 15


def test_a_graph_that_explains_something_else_is_noticed_at_export(dense_vectors: Exported) -> None:
    problem = problems(dense_vectors, 4)[3]
    manifest, batch, slates = dense_vectors.runner.manifest, as_batch(problem, 4), eager(dense_vectors, problem, 4)
    assert explained_difference(manifest, dense_vectors.folder, batch, slates) < TOLERANCE
    others = replace(slates, level_logprobs_BWKL=slates.level_logprobs_BWKL + 0.01)
    assert explained_difference(manifest, dense_vectors.folder, batch, others) == pytest.approx(0.01, abs=TOLERANCE)
