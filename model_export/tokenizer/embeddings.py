"""Item embeddings from text, from co-occurrence, from both, or given, with the encoder that repeats them for new items.

Every embedding has length one. An item without text takes the mean of its neighbours in train histories, an item
without events the ridge projection of its text, and an item with neither the mean of all.

Shapes: N items, T text width, D embedding width.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

from model_export.tokenizer.balance import chunks
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.cooccurrence import collaborative_vectors, cooccurrence
from service.bundle.item_encoder import FloatArray, ItemEncoder, has_value, item_text, unit_rows

RIDGE_ALPHA = 1.0
HELD_OUT_SHARE = 0.1
MIN_ITEMS_HELD_OUT = 20
# the ridge projection from text is fitted on as many items at most: it has far fewer weights
MAX_PROJECTED_ITEMS = 100_000


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemEmbeddings:
    """Embeddings [N, D] of the whole catalog, the encoder for new items, and figures for the report."""

    vectors_ND: FloatArray
    encoder: ItemEncoder
    facts: dict[str, Any]
    parts_ND: dict[str, FloatArray] = field(default_factory=dict)
    """What a fused embedding was made from, by source; a zero row: the item has no such part."""


def embed_items(
    config: TokenizerConfig, items: pl.DataFrame, item_E: NDArray[np.integer], segment_E: NDArray[np.integer]
) -> ItemEmbeddings:
    """Embeds the rows of `items` (items.parquet) with the train events `item_E`, grouped by `segment_E`.

    Raises ValueError where the source has nothing to work on: no text, no events, no or uneven given vectors.
    """
    texts = [
        item_text(title or "", text or "", tags or ())
        for title, text, tags in items.select("title", "text", "tags").iter_rows()
    ]
    text_NT, base = text_vectors(config, texts)
    counts_NN = cooccurrence(item_E, segment_E, items.height, config.window)
    has_text_N = has_value(text_NT)
    facts: dict[str, Any] = {
        "source": config.source,
        "num_words": len(base.words),
        "items_without_text": int((~has_text_N).sum()),
        "items_without_neighbours": int((np.diff(counts_NN.indptr) == 0).sum()),
    }
    if config.source == "text":
        if not has_text_N.any():
            raise ValueError("tokenize.source is text, but no item of items.parquet has a word that TF-IDF can use")
        vectors_NT = fill_from_neighbours(text_NT, has_text_N, counts_NN)
        encoder = with_projection(base, None, None, vectors_NT)
        return ItemEmbeddings(vectors_ND=vectors_NT, encoder=encoder, facts=facts)
    if config.source == "given":
        vectors_ND, known_N = given_vectors(items)
        parts_ND: dict[str, FloatArray] = {}
    else:
        vectors_ND, known_N, parts_ND = event_vectors(config, text_NT, counts_NN)
    projection, offset, quality = fit_projection(text_NT, vectors_ND, known_N & has_text_N, config.seed)
    if projection is not None and offset is not None:
        by_text_N = ~known_N & has_text_N
        vectors_ND[by_text_N] = unit_rows(text_NT[by_text_N] @ projection + offset)
        known_N = known_N | by_text_N
    vectors_ND = fill_from_neighbours(vectors_ND, known_N, counts_NN)
    facts["text_projection"] = quality
    return ItemEmbeddings(
        vectors_ND=vectors_ND,
        encoder=with_projection(base, projection, offset, vectors_ND),
        facts=facts,
        parts_ND=parts_ND,
    )


def event_vectors(
    config: TokenizerConfig, text_NT: FloatArray, counts_NN: sp.csr_matrix
) -> tuple[FloatArray, NDArray[np.bool_], dict[str, FloatArray]]:
    """Unit vectors [N, D] from events, alone or fused with text; which items they know; and the parts if fused."""
    collaborative_ND = collaborative_vectors(counts_NN, config.collaborative_dim, config.seed)
    has_events_N = has_value(collaborative_ND)
    if not has_events_N.any():
        raise ValueError(f"tokenize.source is {config.source}, but no two items occur together in train events")
    if config.source == "collaborative":
        return collaborative_ND, has_events_N, {}
    weights = np.sqrt(np.array([config.text_weight, 1.0 - config.text_weight], np.float32))
    fused_ND = np.concatenate([weights[0] * text_NT, weights[1] * collaborative_ND], axis=1)
    # an item that lacks one part is not fused yet: its projection from text, or its neighbours, complete it
    parts_ND = {"text": text_NT, "collaborative": collaborative_ND}
    return unit_rows(fused_ND), has_events_N & has_value(text_NT), parts_ND


def given_vectors(items: pl.DataFrame) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Unit vectors [N, D] of the column `embedding`, and which rows have one."""
    rows = items.get_column("embedding") if "embedding" in items.columns else pl.Series(dtype=pl.List(pl.Float32))
    widths = rows.list.len().drop_nulls().unique().sort().to_list()
    if len(widths) != 1 or widths == [0]:
        found = "none is given" if not widths else f"found widths {widths}"
        raise ValueError(f"tokenize.source is given: items.parquet needs embeddings of one width, {found}")
    vectors_ND = np.zeros((len(rows), widths[0]), np.float32)
    known_N = rows.is_not_null().to_numpy()
    # chunk by chunk: a million rows of Python floats would take tens of gigabytes
    for chunk in chunks(len(rows), widths[0]):
        given = rows[chunk].drop_nulls().explode().cast(pl.Float32).fill_null(float("nan")).to_numpy()
        vectors_ND[chunk][known_N[chunk]] = given.reshape(-1, widths[0])
        bad_R = ~np.isfinite(vectors_ND[chunk]).all(axis=1)
        if bad_R.any():
            item_id = items.get_column("item_id")[chunk.start + int(bad_R.argmax())]
            raise ValueError(f"items.parquet: embedding of item {item_id!r} holds a value that is not finite")
        vectors_ND[chunk] = unit_rows(vectors_ND[chunk])
    return vectors_ND, has_value(vectors_ND)


def text_vectors(config: TokenizerConfig, texts: list[str]) -> tuple[FloatArray, ItemEncoder]:
    """Unit text vectors [N, T] and the encoder that repeats them; zero rows where no word is known."""
    # a word of one item alone says nothing about other items, but tiny catalogs have no others
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, min_df=2 if len(texts) > 50 else 1, max_features=config.max_vocabulary, dtype=np.float64
    )
    try:
        tfidf_NW = vectorizer.fit_transform(texts)
    except ValueError:
        # scikit-learn's word for "no text holds a word that is frequent enough"
        return np.zeros((len(texts), 1), np.float32), empty_encoder()
    if min(tfidf_NW.shape) <= 1:
        components_TW = np.eye(1, tfidf_NW.shape[1], dtype=np.float32)
        vectors_NT = np.asarray(tfidf_NW @ components_TW.T, np.float32)
    else:
        svd = TruncatedSVD(min(config.text_dim, *tfidf_NW.shape), random_state=config.seed)
        vectors_NT = np.asarray(svd.fit_transform(tfidf_NW), np.float32)
        components_TW = svd.components_.astype(np.float32)
        vectors_NT = np.asarray(tfidf_NW @ components_TW.T, np.float32)
    encoder = ItemEncoder(
        words=tuple(vectorizer.get_feature_names_out().tolist()),
        idf_W=vectorizer.idf_.astype(np.float32),
        components_TW=components_TW,
        projection_TD=None,
        offset_D=None,
        default_D=np.zeros(vectors_NT.shape[1], np.float32),
    )
    return unit_rows(vectors_NT), encoder


def empty_encoder() -> ItemEncoder:
    """The encoder of a catalog without text: it knows no word."""
    return ItemEncoder(
        words=(),
        idf_W=np.zeros(0, np.float32),
        components_TW=np.zeros((1, 0), np.float32),
        projection_TD=None,
        offset_D=None,
        default_D=np.zeros(1, np.float32),
    )


def fill_from_neighbours(vectors_ND: FloatArray, known_N: NDArray[np.bool_], counts_NN: sp.csr_matrix) -> FloatArray:
    """Gives unknown items the mean of their known neighbours in train histories, else the mean of all known items."""
    if known_N.all():
        return vectors_ND
    known_ND = vectors_ND * known_N[:, None]
    around_ND = np.asarray(counts_NN @ known_ND)
    lone_N = ~around_ND.any(axis=1)
    around_ND[lone_N] = known_ND.sum(axis=0)
    return np.where(known_N[:, None], vectors_ND, unit_rows(around_ND)).astype(np.float32)


def with_projection(
    base: ItemEncoder, projection_TD: FloatArray | None, offset_D: FloatArray | None, vectors_ND: FloatArray
) -> ItemEncoder:
    """The text encoder followed by a projection; the mean of all embeddings is its default."""
    mean_D = unit_rows(vectors_ND.mean(axis=0, keepdims=True))[0]
    words, idf_W, components_TW = base.words, base.idf_W, base.components_TW
    if projection_TD is None and components_TW.shape[0] != vectors_ND.shape[1]:
        # text says nothing about this space: every text gets the default
        words, idf_W, components_TW = (), np.zeros(0, np.float32), np.zeros((vectors_ND.shape[1], 0), np.float32)
    return ItemEncoder(
        words=words,
        idf_W=idf_W,
        components_TW=components_TW,
        projection_TD=projection_TD,
        offset_D=offset_D,
        default_D=mean_D,
    )


def fit_projection(
    text_NT: FloatArray, vectors_ND: FloatArray, rows_N: NDArray[np.bool_], seed: int
) -> tuple[FloatArray | None, FloatArray | None, dict[str, float]]:
    """Ridge from text to embedding on the items that have both; its quality on a held-out tenth of them."""
    rows = np.flatnonzero(rows_N)
    if len(rows) < 2:
        return None, None, {}
    if len(rows) > MAX_PROJECTED_ITEMS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_PROJECTED_ITEMS, replace=False))
    quality: dict[str, float] = {}
    if len(rows) >= MIN_ITEMS_HELD_OUT:
        shuffled = np.random.default_rng(seed).permutation(rows)
        cut = int(len(rows) * HELD_OUT_SHARE)
        held, kept = shuffled[:cut], shuffled[cut:]
        guess = Ridge(RIDGE_ALPHA).fit(text_NT[kept], vectors_ND[kept]).predict(text_NT[held])
        error = float(np.square(guess - vectors_ND[held]).sum())
        spread = float(np.square(vectors_ND[held] - vectors_ND[kept].mean(axis=0)).sum())
        cosine = float((unit_rows(guess) * vectors_ND[held]).sum(axis=1).mean())
        quality = {"held_out_r2": 1.0 - error / max(spread, 1e-12), "held_out_cosine": cosine, "held_out": len(held)}
    ridge = Ridge(RIDGE_ALPHA).fit(text_NT[rows], vectors_ND[rows])
    return ridge.coef_.T.astype(np.float32), ridge.intercept_.astype(np.float32), quality
