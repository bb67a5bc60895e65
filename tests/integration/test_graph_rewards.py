"""The reward model inside the generator's graph: the same rewards, whoever runs it, and slates as without it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from exported_graphs import (
    Exported,
    arrays,
    as_batch,
    dense_generator,
    eager,
    export_to,
    lively_reward,
    vector_generator,
)
from search_problems import Problem, random_problem

from model_export.onnx.parity import compare, golden_cases
from model_export.onnx.weights import save_graphs
from service.bundle import Bundle, BundledCatalog, Manifest, write_bundle, write_catalog
from service.catalog import CatalogSnapshot
from service.errors import BundleError
from service.inference.golden import GoldenCases, check_golden
from service.inference.ort_runner import OrtRunner
from service.inference.runner import Decoded, Runner

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Three levels, slates of three, item vectors; an item of the slate sees those before it."""
    generator = vector_generator(num_experts=1)
    return export_to(tmp_path_factory.mktemp("causal"), generator, lively_reward(generator.spec, causal=True))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Two levels, single items, no item vectors: histories have rows for the reward alone."""
    generator = dense_generator()
    return export_to(tmp_path_factory.mktemp("plain"), generator, lively_reward(generator.spec))


@pytest.fixture(params=["causal", "plain"])
def exported(request: pytest.FixtureRequest) -> Exported:
    graph: Exported = request.getfixturevalue(request.param)
    return graph


def problems(exported: Exported, count: int) -> list[Problem]:
    rng = np.random.default_rng(2)
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


def rewards_of(decoded: Decoded) -> npt.NDArray[np.float32]:
    assert decoded.item_rewards_BWK is not None
    return decoded.item_rewards_BWK


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_graph_expects_what_the_reward_model_expects(exported: Exported, engine: str) -> None:
    runner: Runner = exported.runner if engine == "onnxruntime" else exported.in_openvino()
    differences, spread = [], []
    for problem in problems(exported, 24):
        expected, decoded = eager(exported, problem, 5), runner.run(as_batch(problem, 5))
        rewards_BWK = rewards_of(decoded)
        assert rewards_BWK.dtype == np.float32
        assert (rewards_BWK[~decoded.item_valid_BWK] == 0).all()
        same_BW = (decoded.item_rows_BWK == expected.item_rows_BWK.numpy()).all(2)
        assert expected.item_rewards_BWK is not None
        differences.append(np.abs(rewards_BWK - expected.item_rewards_BWK.numpy())[same_BW].ravel())
        spread.append(rewards_BWK[decoded.item_valid_BWK])
        parity = compare(expected, decoded, TOLERANCE, choice="reward", reward_tolerance=1e-3)
        assert parity.reward_difference <= 1e-3
    # A cosine on the edge of a bucket may fall to either side.
    far = np.concatenate(differences) > TOLERANCE
    assert far.mean() < 0.005
    assert np.concatenate(spread).std() > 0.05  # or all rewards would be alike


def test_slates_are_those_of_the_graph_without_rewards(dense_vectors: Exported, causal: Exported) -> None:
    for problem in problems(causal, 6):
        batch = as_batch(problem, 5)
        for mine, other in zip(arrays(causal.runner.run(batch)), arrays(dense_vectors.runner.run(batch)), strict=True):
            np.testing.assert_allclose(mine, other, atol=TOLERANCE)


def written(path: Path, causal: Exported, rewards_are_off_by: float = 0.0) -> Bundle:
    problem = random_problem(np.random.default_rng(4), causal.codebook_sizes, 4, 60, longest_history=6)
    problem.allowed_FN[:] = True
    catalog = as_batch(problem, 5).catalog
    cases = golden_cases(problem.history, problem.excluded_BX, eager(causal, problem, 5), 5, 4)
    assert cases[2].item_rewards is not None
    cases[2].item_rewards[0] += rewards_are_off_by
    bundled = BundledCatalog(list(catalog.items), catalog.sids_NL, catalog.popularity_N)
    vectors_ND, embeddings_NE = catalog.child_vectors[-1], catalog.embeddings_NE
    assert embeddings_NE is not None
    tolerance = {"float32": {"logprob_abs": TOLERANCE, "reward_abs": TOLERANCE}}
    write_bundle(
        path,
        causal.fields() | {"choice": "reward", "golden_tolerance": tolerance},
        {
            "generator.onnx": lambda file: save_graphs(causal.graphs, file.parent),
            "catalog.parquet": lambda file: write_catalog(file, bundled),
            "item_vectors.npz": lambda file: np.savez(file, vectors_ND=vectors_ND),
            "item_embeddings.npz": lambda file: np.savez(file, embeddings_NE=embeddings_NE),
            "golden.json": lambda file: file.write_text(GoldenCases(cases=cases).model_dump_json()),
        },
    )
    return Bundle.open(path)


def test_a_bundle_brings_what_rewards_need_and_is_held_to_them(causal: Exported, tmp_path: Path) -> None:
    right, wrong = written(tmp_path / "right", causal), written(tmp_path / "wrong", causal, 0.01)
    runner = OrtRunner(right.manifest, right.path, num_threads=1)
    found = right.catalog()
    assert found.embeddings_NE is not None
    # In another order than by sid, as a bundle's catalog may be.
    backwards = np.arange(len(found.items))[::-1]
    snapshot = CatalogSnapshot.build(
        [found.items[place] for place in backwards],
        found.sids_NL[backwards],
        vectors_ND=found.vectors_ND[backwards] if found.vectors_ND is not None else None,
        embeddings_NE=found.embeddings_NE[backwards],
    )
    assert check_golden(right, runner, snapshot) == 4
    with pytest.raises(BundleError, match=r"case 2 of 4: rewards differ by 0\.01, 0\.0001 is allowed"):
        check_golden(wrong, runner, snapshot)


def test_a_graph_without_rewards_cannot_choose_by_them(dense: Exported) -> None:
    files = dict.fromkeys(("generator.onnx", "sampler.onnx", "explain.onnx"), "draft")
    with pytest.raises(ValueError, match="choice is 'reward', but the generator's graph gives none"):
        Manifest.model_validate({**dense.fields(), "choice": "reward", "files": files})
