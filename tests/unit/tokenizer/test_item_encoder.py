"""The encoder without scikit-learn gives what scikit-learn gives."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.embeddings import embed_items
from service.bundle.item_encoder import ItemEncoder, item_text
from service.errors import BundleError

WORDS = ["red", "blue", "green", "Steel", "drill", "hammer", "nail", "10mm", "été", "Ünïcode", "a", "drill-bit", "saw"]


def item_frame(texts: list[str], embedding: list[list[float] | None] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "item_id": [str(row) for row in range(len(texts))],
            "title": texts,
            "text": [""] * len(texts),
            "tags": [["Drill", "tool"] if row % 3 else [] for row in range(len(texts))],
            "embedding": embedding or [None] * len(texts),
        },
        schema_overrides={"tags": pl.List(pl.String), "embedding": pl.List(pl.Float32)},
    )


def events(num_items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).integers(0, num_items, 400), np.repeat(np.arange(40), 10)


def random_texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, 6)) for _ in range(count)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6), st.integers(0, 1000))
def test_encoder_equals_the_sklearn_pipeline(strange: list[str], seed: int) -> None:
    frame = item_frame(random_texts(80, seed))
    texts = [item_text(title, "", tags) for title, tags in frame.select("title", "tags").iter_rows()]
    embedded = embed_items(TokenizerConfig(text_dim=8), frame, *events(80))
    tfidf = TfidfVectorizer(sublinear_tf=True, min_df=2, max_features=50_000).fit(texts)
    svd = TruncatedSVD(8, random_state=0).fit(tfidf.transform(texts))
    queries = [*strange, *random_texts(10, seed + 1), *texts[:5]]
    expected = normalize(tfidf.transform(queries) @ svd.components_.T)
    known = tfidf.transform(queries).getnnz(axis=1) > 0
    actual = embedded.encoder.encode(queries)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual[known], expected[known], atol=1e-5)
    np.testing.assert_array_equal(actual[~known], np.tile(embedded.encoder.default_D, ((~known).sum(), 1)))
    np.testing.assert_allclose(embedded.encoder.encode(texts), embedded.vectors_ND, atol=1e-5)


@pytest.mark.parametrize("source", ["text", "collaborative", "fused", "given"])
def test_every_item_has_a_unit_vector_whatever_it_lacks(source: str, tmp_path: Path) -> None:
    texts = ["", "", *random_texts(58)]
    given_vectors: list[list[float] | None] = [
        None,
        None,
        None,
        *np.random.default_rng(0).normal(size=(57, 5)).tolist(),
    ]
    items, segments = events(59)  # the last item has no event
    frame = item_frame(texts, given_vectors).with_columns(tags=pl.lit([], dtype=pl.List(pl.String)))
    config = TokenizerConfig(source=source, text_dim=6, collaborative_dim=7)  # type: ignore[arg-type]
    embedded = embed_items(config, frame, items, segments)
    np.testing.assert_allclose(np.linalg.norm(embedded.vectors_ND, axis=1), 1, atol=1e-5)
    embedded.encoder.save(tmp_path / "item_encoder.npz")
    loaded = ItemEncoder.load(tmp_path / "item_encoder.npz")
    assert loaded.words == embedded.encoder.words
    np.testing.assert_array_equal(loaded.encode(texts), embedded.encoder.encode(texts))
    new = loaded.encode(["steel hammer", "qqq"])
    assert new.shape == (2, embedded.vectors_ND.shape[1])
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, atol=1e-5)
    given_rows = loaded.encode_vectors(np.stack([3 * embedded.vectors_ND[5], np.zeros(loaded.width)]))
    np.testing.assert_allclose(given_rows[0], embedded.vectors_ND[5], atol=1e-6)
    np.testing.assert_array_equal(given_rows[1], loaded.default_D)


def test_projection_from_text_recovers_a_space_that_text_determines() -> None:
    texts = random_texts(300)
    by_text = embed_items(TokenizerConfig(text_dim=6), item_frame(texts), *events(300))
    rotated = by_text.vectors_ND @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    embedded = embed_items(
        TokenizerConfig(source="given", text_dim=6), item_frame(texts, rotated.tolist()), *events(300)
    )
    assert embedded.facts["text_projection"]["held_out_r2"] > 0.8
    cosine = (embedded.encoder.encode(texts) * embedded.vectors_ND).sum(axis=1)
    assert np.median(cosine) > 0.8


def test_sources_without_material_are_refused() -> None:
    items, segments = events(60)
    with pytest.raises(ValueError, match=r"no item of items\.parquet has a word"):
        embed_items(
            TokenizerConfig(),
            item_frame([""] * 60).with_columns(tags=pl.lit([], dtype=pl.List(pl.String))),
            items,
            segments,
        )
    with pytest.raises(ValueError, match="embeddings of one width, none is given"):
        embed_items(TokenizerConfig(source="given"), item_frame(random_texts(60)), items, segments)
    uneven: list[list[float] | None] = [[1.0], *[[1.0, 2.0]] * 59]
    with pytest.raises(ValueError, match=r"found widths \[1, 2\]"):
        embed_items(TokenizerConfig(source="given"), item_frame(random_texts(60), uneven), items, segments)
    with pytest.raises(ValueError, match="no two items occur together"):
        embed_items(TokenizerConfig(source="collaborative"), item_frame(random_texts(60)), items[:0], segments[:0])
    vectors: list[list[float] | None] = [[float("nan") if row == 7 else 1.0] for row in range(60)]
    with pytest.raises(ValueError, match="item '7' holds a value that is not finite"):
        embed_items(TokenizerConfig(source="given"), item_frame(random_texts(60), vectors), items, segments)


def test_bad_vectors_and_files_are_refused(tmp_path: Path) -> None:
    encoder = embed_items(TokenizerConfig(text_dim=4), item_frame(random_texts(60)), *events(60)).encoder
    with pytest.raises(ValueError, match="must have 4 values, not 3"):
        encoder.encode_vectors(np.ones((1, 3)))
    with pytest.raises(ValueError, match="not finite"):
        encoder.encode_vectors(np.array([[1.0, np.inf, 0.0, 0.0]]))
    path = tmp_path / "item_encoder.npz"
    with pytest.raises(BundleError, match="not a readable item encoder"):
        ItemEncoder.load(path)
    encoder.save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BundleError, match="not a readable item encoder"):
        ItemEncoder.load(path)
