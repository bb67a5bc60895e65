"""Item vectors: what they are made of, what prefixes are worth, and what a user's history makes of them."""

import numpy as np
import pytest
import torch
from search_problems import VECTOR_WIDTH, item_vectors, make_catalog, make_history, rows_of, tiny_generator
from torch.nn import functional as F

from model_export.model.items import ItemVectors
from model_export.model.trie import TriePaths
from service.catalog.trie import vectors_of_children

SIDS = [(0, 0, 0), (0, 0, 2), (0, 2, 1), (2, 1, 0), (3, 0, 1), (3, 0, 2), (3, 2, 0)]
CPU = torch.device("cpu")


def test_an_unseen_items_vector_comes_from_its_embedding_alone() -> None:
    items = item_vectors(make_catalog(SIDS))
    with torch.no_grad():
        vectors_ND = items()
        fresh_ND = F.normalize(items.projection(items.embedding_NE), dim=1)
    is_seen_N = items.is_seen_N1.squeeze(1) > 0
    torch.testing.assert_close(vectors_ND.norm(dim=1), torch.ones(len(SIDS)))
    torch.testing.assert_close(vectors_ND[~is_seen_N], fresh_ND[~is_seen_N])
    assert (vectors_ND[is_seen_N] - fresh_ND[is_seen_N]).abs().max() > 0.01


def test_the_start_keeps_the_cosines_of_embeddings_that_fit() -> None:
    catalog = make_catalog(SIDS)
    embedding_NE = torch.randn(len(SIDS), 20, generator=torch.Generator().manual_seed(0))
    items = ItemVectors(8, embedding_NE, torch.ones(len(SIDS)), TriePaths.of(catalog, CPU))
    with torch.no_grad():
        vectors_ND = items()
    centred_NE = F.normalize(embedding_NE - embedding_NE.mean(0), dim=1)
    torch.testing.assert_close(vectors_ND @ vectors_ND.T, centred_NE @ centred_NE.T, atol=2e-3, rtol=0)


def test_prefixes_are_means_of_their_items_in_training_and_in_the_service() -> None:
    catalog = make_catalog(SIDS)
    items = item_vectors(catalog)
    with torch.no_grad():
        vectors_ND = items()
        trained = [table.numpy() for table in items.of_children(vectors_ND)]
    served = vectors_of_children(catalog.trie, vectors_ND.numpy())
    for level, (left_MD, right_MD) in enumerate(zip(trained, served, strict=True)):
        prefixes = sorted({sid[: level + 1] for sid in SIDS})
        expected_MD = np.stack(
            [
                np.sum([vectors_ND[row].numpy() for row, sid in enumerate(SIDS) if sid[: level + 1] == prefix], 0)
                for prefix in prefixes
            ]
        )
        expected_MD /= np.linalg.norm(expected_MD, axis=1, keepdims=True)
        np.testing.assert_allclose(left_MD, expected_MD, atol=1e-6)
        np.testing.assert_allclose(right_MD, expected_MD, atol=1e-6)


def test_walking_the_codes_finds_the_nodes_of_the_rows() -> None:
    catalog = make_catalog(SIDS)
    paths = TriePaths.of(catalog, CPU)
    codes_BKL = torch.from_numpy(catalog.sids_NL).long().unsqueeze(0)
    torch.testing.assert_close(paths.walk(codes_BKL)[0], paths.node_NL)


def test_interest_weighs_by_place_and_action_and_reads_no_padding() -> None:
    catalog = make_catalog(SIDS)
    generator = tiny_generator(3, 2, "legal_softmax", catalog=catalog)
    affinity = generator.affinity
    assert affinity is not None
    events = [(tuple(code + 2 for code in SIDS[row]), action, 0, 1.0) for row, action in ((4, 1), (0, 2), (5, 1))]
    plain, padded = (make_history([events], 3, padding=padding) for padding in (0, 3))
    with torch.no_grad():
        vectors_ND = affinity.items()
        expected_D = torch.zeros(VECTOR_WIDTH)
        for age, (row, action) in enumerate(((5, 1), (0, 2), (4, 1))):
            weight = affinity.log_weight_T[age].exp() * affinity.action_A1.weight[action, 0]
            expected_D += weight * vectors_ND[row]
        for history in (plain, padded):
            rows_BT = rows_of(history, catalog).clamp(min=0)
            found_BD = affinity.interest(vectors_ND[rows_BT], history.actions_BT, history.lengths_B)
            torch.testing.assert_close(found_BD[0], expected_D)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_only_codes_that_continue_the_path_gain_by_affinity(level: int) -> None:
    catalog = make_catalog(SIDS)
    generator = tiny_generator(3, 2, "legal_softmax", catalog=catalog)
    affinity = generator.affinity
    assert affinity is not None
    row = 4
    prefix = SIDS[row][:level]
    children = {sid[level] for sid in SIDS if sid[:level] == prefix}
    node_BK = affinity.items.paths.node_NL[row, level].view(1, 1)
    with torch.no_grad():
        table_MD = affinity.items.of_children(affinity.items())[level]
        query_BKD = torch.randn(1, 1, VECTOR_WIDTH)
        logits_BKV = torch.zeros(1, 1, generator.spec.codebook_sizes[level])
        found_V = affinity.add_to_logits(level, logits_BKV, query_BKD, node_BK, table_MD)[0, 0]
    assert {code for code, logit in enumerate(found_V.tolist()) if logit != 0} == children
    prefixes = sorted({sid[: level + 1] for sid in SIDS})
    for code in children:
        expected = query_BKD[0, 0] @ table_MD[prefixes.index((*prefix, code))]
        torch.testing.assert_close(found_V[code], expected)
