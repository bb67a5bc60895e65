"""The sampler's graph draws what the model draws, in every engine, whoever shares the batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_graphs import TOLERANCE, Exported, as_batch, eager, served, take_requests
from onnx import helper, numpy_helper
from search_problems import Problem, random_problem, rows_of
from test_graph_batching import NUM_REQUESTS, _fixed_width, some_requests

from model_export.search.eager import BeamSearch, Slates
from model_export.search.noise import PRIMES
from service.errors import RunnerError
from service.inference.openvino_runner import compile_graph, has_bfloat16
from service.inference.runner import DEAD_SCORE, Batch, Draws, Runner


def sampled(problem: Problem, beam_width: int, temperature: float, seeds: np.ndarray) -> Batch:
    """The problem's arrays for the sampler."""
    temperatures_B = np.full(problem.num_requests, temperature, dtype=np.float32)
    draws = Draws(temperatures_B=temperatures_B, seeds_B=seeds.astype(np.int64))
    return replace(as_batch(problem, beam_width), purpose="sampler", draws=draws)


def eager_draws(exported: Exported, problem: Problem, batch: Batch) -> Slates:
    """What the model itself draws."""
    assert batch.draws is not None
    search = BeamSearch(exported.generator, served(problem.catalog), exported.reward)
    return search.decode(
        replace(problem.history, rows_BT=rows_of(problem.history, problem.catalog)),
        beam_width=batch.beam_width,
        temperature=float(batch.draws.temperatures_B[0]),
        seeds_B=torch.from_numpy(batch.draws.seeds_B),
        **problem.restrictions(),
    )


def problems(exported: Exported, count: int) -> list[Problem]:
    rng = np.random.default_rng(2)
    return [
        random_problem(rng, exported.codebook_sizes, (1, 2, 16)[number % 3], (6, 30, 70)[number % 3], 6, has_caps=True)
        for number in range(count)
    ]


def compare(exported: Exported, runner: Runner, tolerance: float) -> tuple[int, int]:
    """Holds the runner's draws against the model's; first slates that are the same, and all of them."""
    same = compared = 0
    for number, problem in enumerate(problems(exported, 24)):
        seeds = np.arange(problem.num_requests) * 123_456_789 % 2**32 + number
        batch = sampled(problem, (1, 4, 9)[number % 3], (1.0, 2.5)[number % 2], seeds)
        expected, decoded = eager_draws(exported, problem, batch), runner.run(batch)
        assert expected.level_log_propensities_BWKL is not None
        assert decoded.level_log_propensities_BWKL is not None
        assert (np.diff(decoded.scores_BW, axis=1) <= 0).all()
        np.testing.assert_array_equal(decoded.item_valid_BWK, decoded.item_rows_BWK >= 0)
        same_BW = (decoded.item_rows_BWK == expected.item_rows_BWK.numpy()).all(2)
        for name in ("level_logprobs_BWKL", "level_log_propensities_BWKL"):
            found, model = getattr(decoded, name)[same_BW], getattr(expected, name).numpy()[same_BW]
            np.testing.assert_allclose(found, model, atol=tolerance, rtol=0)
        if tolerance <= TOLERANCE:
            scores_BW = expected.scores_BW.numpy()
            np.testing.assert_allclose(decoded.scores_BW[same_BW], scores_BW[same_BW], atol=20 * tolerance, rtol=1e-6)
        same, compared = same + int(same_BW[:, 0].sum()), compared + len(same_BW)
    return same, compared


def test_the_graph_draws_what_the_model_draws(exported: Exported) -> None:
    same, compared = compare(exported, exported.runner, TOLERANCE)
    assert same >= 0.99 * compared > 100


@pytest.mark.parametrize("name", ["dense", "dense_vectors"])
def test_openvino_draws_what_the_model_draws(name: str, request: pytest.FixtureRequest) -> None:
    exported: Exported = request.getfixturevalue(name)
    same, compared = compare(exported, exported.in_openvino(), TOLERANCE)
    assert same >= 0.99 * compared > 100


@pytest.mark.skipif(not has_bfloat16(), reason="this processor has no bfloat16")
def test_the_noise_is_the_same_in_bfloat16(dense: Exported) -> None:
    """Logits of eight bits move some draws; other noise would move nearly all."""
    same, compared = compare(dense, dense.in_openvino("bfloat16"), tolerance=0.5)
    assert same > 0.85 * compared


@pytest.mark.parametrize("precision", ["float32", "bfloat16"] if has_bfloat16() else ["float32"])
def test_openvino_divides_every_number_of_the_noise_exactly(precision: str, tmp_path: Path) -> None:
    numbers_N = np.arange(PRIMES[0] ** 2 + 4 * PRIMES[0], dtype=np.int32)
    graph = helper.make_graph(
        [
            helper.make_node("Div", ["x", "primes"], ["quotient"]),
            helper.make_node("Mul", ["quotient", "primes"], ["multiple"]),
            helper.make_node("Sub", ["x", "multiple"], ["rest"]),
        ],
        "modulo",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT32, ["n", 4])],
        [helper.make_tensor_value_info("rest", onnx.TensorProto.INT32, ["n", 4])],
        [numpy_helper.from_array(np.array(PRIMES, dtype=np.int32), "primes")],
    )
    path = tmp_path / "modulo.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    request = compile_graph(path, precision, 1).create_infer_request()  # type: ignore[arg-type]
    found = next(iter(request.infer([np.repeat(numbers_N[:, None], 4, 1)]).values()))
    np.testing.assert_array_equal(found, numbers_N[:, None] % np.array(PRIMES))


def test_the_noise_keeps_to_operators_that_every_engine_computes_exactly(exported: Exported) -> None:
    kinds = {node.op_type for node in exported.graphs["sampler"].graph.node}
    assert not {kind for kind in kinds if kind.startswith(("Bit", "Mod", "Random"))}
    perturb = [node for node in exported.graphs["sampler"].graph.node if node.name.startswith("perturb_0/")]
    assert sum(node.op_type == "Div" for node in perturb) == 6  # five remainders and the temperature
    assert not {node.op_type for node in perturb} & {"Floor", "Sign"}  # no quotient by way of floats


def test_neighbours_change_no_bit(exported: Exported) -> None:
    problem = some_requests(exported, seed=4)
    rng = np.random.default_rng(0)
    first: dict[int, list[bytes]] = {}
    compared = 0
    for _ in range(12):
        places = rng.integers(0, NUM_REQUESTS, 8)
        decoded = exported.runner.run(sampled(_fixed_width(problem, places), 5, 1.0, 7 * places))
        for at, request in enumerate(places.tolist()):
            beams = decoded.of_request(at)
            names = ("item_rows_WK", "level_logprobs_WKL", "scores_W", "level_log_propensities_WKL")
            answer = [getattr(beams, name).tobytes() for name in names]
            compared += request in first
            assert first.setdefault(request, answer) == answer
    assert compared > 50


def test_other_seeds_draw_other_slates_and_the_generator_is_left_alone(vectors: Exported) -> None:
    problem = take_requests(some_requests(vectors, seed=4), np.zeros(8, dtype=np.int64))
    decoded = vectors.runner.run(sampled(problem, 5, 2.0, np.arange(8)))
    assert len({str(rows) for rows in decoded.item_rows_BWK[:, 0].tolist()}) > 4
    best = vectors.runner.run(as_batch(problem, 5))
    assert best.level_log_propensities_BWKL is None
    np.testing.assert_array_equal(best.item_rows_BWK, eager(vectors, problem, 5).item_rows_BWK.numpy())
    assert (best.scores_BW > DEAD_SCORE).any()


def test_a_bundle_without_a_sampler_says_so(dense: Exported) -> None:
    problem = some_requests(dense, seed=4)
    manifest = dense.runner.manifest
    only = manifest.model_copy(update={"graphs": {"generator": manifest.graphs["generator"]}})
    runner = type(dense.runner)(only, dense.folder)
    with pytest.raises(RunnerError, match="no graph 'sampler'"):
        runner.run(sampled(problem, 5, 1.0, np.arange(NUM_REQUESTS)))
