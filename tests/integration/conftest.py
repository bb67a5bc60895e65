"""Graphs are exported once for all tests: each takes a while."""

import pytest
from exported_graphs import Exported, dense_generator, export_to, mixture_generator, vector_generator


@pytest.fixture(scope="session")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Experts, three levels, slates of three, full softmax, with times."""
    return export_to(tmp_path_factory.mktemp("mixture"), mixture_generator())


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One dense layer, two levels, single items, legal softmax, without times."""
    return export_to(tmp_path_factory.mktemp("dense"), dense_generator())


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Experts, three levels, slates of three, item vectors, legal softmax."""
    return export_to(tmp_path_factory.mktemp("vectors"), vector_generator())


@pytest.fixture(scope="session")
def dense_vectors(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """As `vectors`, with one dense layer."""
    return export_to(tmp_path_factory.mktemp("dense_vectors"), vector_generator(num_experts=1))


@pytest.fixture(params=["mixture", "dense", "vectors"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """Each of the graphs."""
    graph: Exported = request.getfixturevalue(request.param)
    return graph
