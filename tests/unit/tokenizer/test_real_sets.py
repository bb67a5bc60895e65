"""The tokenizer's bar on real catalogs, and everything the stage writes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_export.data.config import PrepareConfig
from model_export.data.preparation import prepare
from model_export.data.prepared import PreparedData
from model_export.tokenizer.config import TokenizerConfig
from model_export.tokenizer.stage import tokenize
from model_export.tokenizer.tokenization import Tokenization
from service.bundle.item_encoder import assign_new, item_text

FOLDERS = {"industrial": "industrial", "beauty": "amazon14", "ml-1m": "ml-1m"}
FORMATS = {"industrial": "industrial", "beauty": "sequences", "ml-1m": "sequences"}
# the largest set in a shorter form than the defaults, which do better in a longer time
SHORT = {"beauty": {"refine_sweeps": 14}}


def prepared(shared_data: Callable[[str], Path], name: str, out_dir: Path) -> PreparedData:
    folder = shared_data(FOLDERS[name])
    return prepare(
        PrepareConfig(format=FORMATS[name]), folder / "Beauty.txt.gz" if name == "beauty" else folder, out_dir
    )


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_real_catalogs_meet_the_bar(name: str, shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    data = prepared(shared_data, name, tmp_path / "data")
    result = tokenize(TokenizerConfig(**SHORT.get(name, {})), data, tmp_path / "out")  # type: ignore[arg-type]
    report = result.report
    assert result.codebook_sizes == (256, 256, 256)
    assert report["collisions"] == 0
    assert len(np.unique(result.sids_NL, axis=0)) == data.num_items
    for level in report["levels"]:
        assert level["utilisation"] == 1.0
        assert level["max_size"] - level["min_size"] <= 1
        assert level["entropy_share"] > 0.999
    assert report["error_ratio"] <= 1.1
    # a shuffled assignment is balanced and unique too, but knows nothing
    first = report["neighbours"][0]
    assert first["shared"] > 50 * first["shuffled"]


def test_the_stage_writes_what_later_stages_read(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    data = prepared(shared_data, "industrial", tmp_path / "data")
    config = TokenizerConfig(source="fused", codebook_size=32, refine_sweeps=2, balance_iterations=1)
    result = tokenize(config, data, tmp_path / "out")
    loaded = Tokenization.load(tmp_path / "out")
    np.testing.assert_array_equal(loaded.sids_NL, result.sids_NL)
    np.testing.assert_array_equal(loaded.embeddings_ND, result.embeddings_ND)
    assert loaded.codebook_sizes == (32, 32, 32)
    assert loaded.max_branch == tuple(result.report["max_branch"])
    assert loaded.max_branch[0] == 32
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == loaded.report
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Collisions: 0" in text
    for name in ("code_sizes.png", "reconstruction.png"):
        assert f"({name})" in text
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    # a new item with an old item's text lands near it, on a sid of its own
    title, body, tags = data.items.select("title", "text", "tags").row(10)
    vector = loaded.encoder.encode([item_text(title, body, tags)])[0]
    taken = np.unique(loaded.sids_NL, axis=0)
    sid = assign_new(vector, loaded.codebooks, taken, loaded.max_branch)
    assert not (taken == sid).all(axis=1).any()
    reconstructed = sum(codebook[code] for codebook, code in zip(loaded.codebooks, sid, strict=True))
    assert np.square(reconstructed - vector).sum() < 0.8 * np.square(loaded.embeddings_ND - vector).sum(axis=1).mean()


def test_a_damaged_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a directory that tokenize wrote"):
        Tokenization.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_levels": 0}, "num_levels must be at least 1"),
        ({"codebook_size": (4, 4)}, "names 2 levels, num_levels is 3"),
        ({"codebook_size": 0}, "codebook_size must be at least 1"),
        ({"source": "image"}, "source must be text"),
        ({"text_weight": 1.0}, "between 0 and 1"),
        ({"refine_sweeps": -1}, "must not be negative"),
        ({"balance_tolerance": 0}, "balance_tolerance must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**settings)  # type: ignore[arg-type]


def test_a_catalog_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="65 items do not fit into 4 x 4 x 4 = 64"):
        TokenizerConfig(codebook_size=4).codebook_sizes(65)
