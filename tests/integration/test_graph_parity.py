"""The exported graph decodes what the model decodes, on any catalog of its codebooks."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported_graphs import TOLERANCE, Exported, as_batch, eager
from search_problems import Problem, make_catalog, make_history, random_problem

from model_export.search.driver import graph_inputs
from service.errors import RunnerError
from service.inference.feeds import OUTPUTS
from service.inference.golden import MARGIN_IN_TOLERANCES
from service.inference.ort_runner import OrtRunner
from service.inference.runner import DEAD_SCORE, Decoded, Runner

NUM_PROBLEMS = 48
"""Random catalogs, filters, exclusions and paddings, per graph and beam width."""


def check(exported: Exported, problem: Problem, beam_width: int, runner: Runner | None = None) -> Counter[str]:
    """Compares every beam of every request; says how many were decided and how many were not."""
    expected = eager(exported, problem, beam_width)
    decoded = (runner or exported.runner).run(as_batch(problem, beam_width))
    scores_BW = expected.scores_BW.numpy()
    # Scores are sums of up to nine logprobs.
    np.testing.assert_allclose(decoded.scores_BW, scores_BW, atol=9 * TOLERANCE, rtol=1e-6)
    # A beam is decided where both its neighbours in score are far away, or dead.
    gap_BW = np.diff(scores_BW.astype(np.float64), axis=1, prepend=np.inf, append=-np.inf)
    far_BW = np.minimum(np.abs(gap_BW[:, :-1]), np.abs(gap_BW[:, 1:])) > MARGIN_IN_TOLERANCES * TOLERANCE
    live_BW = scores_BW > DEAD_SCORE / 2
    rows_BWK = expected.item_rows_BWK.numpy()
    np.testing.assert_array_equal(decoded.item_rows_BWK[far_BW], rows_BWK[far_BW])
    same_BW = (decoded.item_rows_BWK == rows_BWK).all(2)
    logprobs_BWKL = expected.level_logprobs_BWKL.numpy()
    np.testing.assert_allclose(decoded.level_logprobs_BWKL[same_BW], logprobs_BWKL[same_BW], atol=TOLERANCE, rtol=0)
    np.testing.assert_array_equal(decoded.item_valid_BWK, decoded.item_rows_BWK >= 0)
    np.testing.assert_array_equal(decoded.item_valid_BWK.sum(2), expected.item_valid_BWK.numpy().sum(2))
    return Counter(decided=int((far_BW & live_BW).sum()), live=int(live_BW.sum()), dead=int((~live_BW).sum()))


@pytest.mark.parametrize("beam_width", [1, 5, 20])
def test_graph_and_model_agree_on_random_problems(exported: Exported, beam_width: int) -> None:
    rng = np.random.default_rng(beam_width)
    counts: Counter[str] = Counter()
    for number in range(NUM_PROBLEMS):
        problem = random_problem(
            rng,
            exported.codebook_sizes,
            num_requests=(1, 2, 5)[number % 3],
            most_items=(1, 6, 30, 70)[number % 4],
            longest_history=(0, 4, 11)[number % 3],
            padding=(0, 3)[number % 2],
            has_caps=number % 4 == 3,
        )
        counts += check(exported, problem, beam_width)
    assert counts["decided"] > 0.8 * counts["live"] > 10, counts


def test_ages_and_values_on_the_edge_of_a_bucket_agree(exported: Exported) -> None:
    sizes = exported.codebook_sizes
    codes = tuple(range(2, 2 + len(sizes)))
    events = [
        [(codes, 1 + number % 2, (2**number - 1) * 1000 + offset_ms, (np.nan, 1.0, 5.0, np.inf)[number % 4])]
        for number in range(33)
        for offset_ms in (-1, 0, 1)
    ]
    rng = np.random.default_rng(0)
    problem = random_problem(rng, sizes, 1, most_items=50)
    problem = dataclasses.replace(
        problem,
        history=make_history(events, len(sizes)),
        excluded=(frozenset(),) * len(events),
        allowed_FN=np.ones((1, problem.catalog.num_items), dtype=bool),
        slots=(0,) * len(events),
    )
    assert check(exported, problem, 5)["decided"] > 50


def test_one_item_nothing_and_everything(exported: Exported) -> None:
    sizes = exported.codebook_sizes
    history = make_history([[], [], []], len(sizes))
    everything = np.stack(np.meshgrid(*map(np.arange, sizes)), -1).reshape(-1, len(sizes))
    for sids in ([tuple(size - 1 for size in sizes)], everything.tolist()):
        catalog = make_catalog(sids)
        num_items = catalog.num_items
        problem = Problem(
            catalog=catalog,
            history=history,
            excluded=(frozenset(), frozenset(range(num_items)), frozenset(range(1, num_items))),
            allowed_FN=np.ones((1, num_items), dtype=bool),
            slots=(0, 0, 0),
        )
        check(exported, problem, 5)
        decoded = exported.runner.run(as_batch(problem, 5))
        shown = decoded.item_valid_BWK[:, 0].sum(1).tolist()
        slate_size = exported.generator.spec.slate_size
        assert shown == [min(num_items, slate_size), 0, 1]


def test_the_beam_may_be_wider_than_the_catalog(exported: Exported) -> None:
    rng = np.random.default_rng(3)
    problem = random_problem(rng, exported.codebook_sizes, 2, most_items=3)
    assert check(exported, problem, 20)["dead"] > 0


def test_times_matter_only_to_a_model_that_knows_them(mixture: Exported, dense: Exported) -> None:
    for exported, matter in ((mixture, True), (dense, False)):
        sizes = exported.codebook_sizes
        codes = tuple(range(2, 2 + len(sizes)))
        catalog = make_catalog([tuple([code] * len(sizes)) for code in range(4)])
        decoded = []
        for age_ms in (5_000, 5_000_000):
            problem = Problem(
                catalog=catalog,
                history=make_history([[(codes, 1, age_ms, np.nan)]], len(sizes)),
                excluded=(frozenset(),),
                allowed_FN=np.ones((1, 4), dtype=bool),
                slots=(0,),
            )
            decoded.append(exported.runner.run(as_batch(problem, 4)))
        assert (decoded[0].scores_BW != decoded[1].scores_BW).any() == matter


def test_the_graph_holds_no_control_flow_and_few_kinds_of_operators(exported: Exported) -> None:
    graph = exported.model.graph
    kinds = {(node.domain, node.op_type) for node in graph.node}
    assert {kind for domain, kind in kinds if domain not in {"", "ai.onnx"}} <= {"MoE"}
    assert not {kind for _, kind in kinds} & {"If", "Loop", "Scan", "SequenceMap"}
    assert [place.name for place in graph.input] == list(
        graph_inputs(exported.generator.spec.num_levels, has_vectors=exported.generator.affinity is not None)
    )
    assert [place.name for place in graph.output] == list(OUTPUTS)
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_weights_are_stored_once(exported: Exported) -> None:
    stored = sum(
        int(np.prod(tensor.dims))
        for tensor in exported.model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    trained = sum(parameter.numel() for parameter in exported.generator.parameters())
    # Sums of position vectors and small constants come on top; a second copy of anything big would show.
    assert stored < 1.3 * trained + 1000


def test_a_graph_that_does_not_load_is_one_error(mixture: Exported, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"generator\.onnx: does not load"):
        OrtRunner(mixture.runner.manifest, tmp_path)
    (tmp_path / "generator.onnx").write_bytes((mixture.folder / "generator.onnx").read_bytes()[:5000])
    with pytest.raises(RunnerError, match=r"generator\.onnx: does not load"):
        OrtRunner(mixture.runner.manifest, tmp_path)


def test_a_provider_that_is_not_there_is_one_error(mixture: Exported) -> None:
    with pytest.raises(RunnerError, match="NoSuchProvider is not in this onnxruntime, which has"):
        OrtRunner(mixture.runner.manifest, mixture.folder, provider="NoSuchProvider")


def test_a_batch_that_fits_no_graph_is_one_error(dense: Exported) -> None:
    problem = random_problem(np.random.default_rng(0), dense.codebook_sizes, 2, most_items=9, longest_history=3)
    batch = as_batch(problem, 2)
    with pytest.raises(RunnerError, match="failed on a batch of 2"):
        dense.runner.run(dataclasses.replace(batch, history_codes_BTL=batch.history_codes_BTL + 100))
    assert isinstance(dense.runner.run(batch), Decoded)  # and the next batch is served
    assert dense.runner.provider == "CPUExecutionProvider"


def test_exporting_leaves_the_generator_as_it_was(mixture: Exported) -> None:
    assert not mixture.generator.training
    assert all(torch.isfinite(parameter).all() for parameter in mixture.generator.parameters())
