"""Large catalogs in the decoder bench: their form, growth beside SASRec, and building their tries."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_workload import small_values

from loadtests.bench.decode import catalog as module
from loadtests.bench.decode.catalog import CatalogGrowth
from loadtests.bench.decode.graphs import feeds_of
from loadtests.bench.decode.sasrec import SasRec
from loadtests.bench.decode.synthetic import BareCatalog, num_bytes, planted_sids
from loadtests.bench.decode.trie import TrieBuild
from loadtests.bench.errors import BenchError
from model_export.evaluate.baselines.sasrec_config import SasRecConfig
from service.catalog import CatalogSnapshot
from service.domain import Item

SASREC = {"width": 8, "num_layers": 1, "num_heads": 2, "feed_forward_width": 16, "max_length": 6, "dropout": 0.0}


@given(st.integers(2, 6), st.integers(1, 4), st.floats(0, 1), st.integers(0, 3))
def test_catalogs_of_all_sizes_have_equal_branching_and_distinct_sids(
    codebook_size: int, num_levels: int, share: float, seed: int
) -> None:
    fewest, most = num_levels * (codebook_size - 1) + 1, codebook_size**num_levels
    num_items = round(fewest + share * (most - fewest))
    sids_NL = planted_sids(num_items, codebook_size, num_levels, seed)
    assert sids_NL.shape == (num_items, num_levels)
    assert len({tuple(sid) for sid in sids_NL.tolist()}) == num_items
    assert BareCatalog.snapshot(sids_NL).trie.max_branch == (codebook_size,) * num_levels


def test_a_catalog_too_small_or_too_large_for_that_is_refused() -> None:
    for num_items in (21, 513):
        with pytest.raises(ValueError, match="22 to 512 fit"):
            planted_sids(num_items, 8, 3, 0)


def test_the_stand_in_gives_a_graph_what_a_snapshot_gives() -> None:
    workload = CatalogGrowth.of(small_values(more_items=[]))
    sids_NL = planted_sids(60, 8, 2, 0)
    snapshot = CatalogSnapshot.build([Item(item_id=str(row)) for row in range(60)], sids_NL)
    expected, found = feeds_of(workload, snapshot, 4, 2), feeds_of(workload, BareCatalog.snapshot(sids_NL), 4, 2)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    per_catalog = {name for name in found if name.startswith("child_")} | {"sids", "allowed_cumsum"}
    assert num_bytes(snapshot) == sum(found[name].nbytes for name in per_catalog)


@pytest.mark.slow
def test_sasrec_in_onnx_runtime_ranks_all_items_as_in_pytorch() -> None:
    exported = SasRec(SasRecConfig(**SASREC), slate_size=3, seed=1)  # type: ignore[arg-type]
    session = exported.session(40, 1)
    (entry,) = session.get_inputs()  # the table is a weight
    rows_BT = np.random.default_rng(0).integers(0, 40, (5, 6), dtype=np.int32)
    (found_BK,) = session.run(None, {entry.name: rows_BT})
    table_ND = torch.from_numpy(exported.table(40))
    with torch.inference_mode():
        hidden_BD = exported.module.model(torch.from_numpy(rows_BT), table_ND)[:, -1]
    expected_BK = (hidden_BD @ table_ND.T).topk(3, dim=1).indices
    np.testing.assert_array_equal(found_BK, expected_BK.numpy())


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_growth_is_over_the_smallest_catalog_and_beside_the_rival_of_the_same_size(console: Console) -> None:
    workload = CatalogGrowth.of(small_values(num_items=20, more_items=[40, 60], sasrec=SASREC))
    out = workload.measure(console)
    value = {(row.workload, row.system, row.unit): row.value for row in out.rows}
    assert len(value) == len(out.rows) == 3 + 3 * 2 * 2
    ours = "onnxruntime float32, whole slates"

    def ms(size: int, system: str, shape: str) -> float:
        return value[f"small, {size} items, {shape}", system, "ms a batch"]

    for beam_width, batch_size in workload.shapes:
        shape = f"beam {beam_width}, batch {batch_size}"
        for size in (40, 60):
            for name, system in (("slates", ours), ("sasrec", "sasrec")):
                ratio = out.ratios[f"{name}, time with {size} items over 20, {shape}"]
                assert ratio == pytest.approx(ms(size, system, shape) / ms(20, system, shape))
        for size in (20, 40, 60):
            ratio = out.ratios[f"slates over sasrec, {size} items, {shape}"]
            assert ratio == pytest.approx(ms(size, "sasrec", shape) / ms(size, ours, shape))
    assert len(out.ratios) == 2 * (2 * 2 + 3)
    assert value["small, 20 items", "arrays", "MiB"] < value["small, 60 items", "arrays", "MiB"]


def test_catalogs_that_branch_differently_are_not_compared(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def uneven(num_items: int, codebook_size: int, num_levels: int, seed: int) -> Any:
        return planted_sids(60, 8, 2, seed)[:num_items]

    monkeypatch.setattr(module, "planted_sids", uneven)
    with pytest.raises(BenchError, match="branch differently"):
        CatalogGrowth.of(small_values(num_items=20, more_items=[60])).measure(console)


def test_building_a_trie_reports_time_and_memory_of_its_own_process(console: Console) -> None:
    ballast = bytearray(200 << 20)  # of ours: the child must not count it
    workload = TrieBuild(
        name="trie", num_threads=1, num_rounds=2, num_items=(500, 5000), codebook_size=24, num_levels=3, seed=0
    )
    rows = {(row.workload, row.system, row.unit): row.value for row in workload.measure(console).rows}
    assert len(ballast) == 200 << 20
    for size in (500, 5000):
        label = f"trie, {size:,} items"
        parts = rows[label, "sort", "s"] + rows[label, "trie", "s"]
        assert 0 < parts == pytest.approx(rows[label, "sort and trie", "s"])
        assert rows[label, "sids", "MiB"] == pytest.approx(size * 3 * 4 / 2**20)
        trie = BareCatalog.snapshot(planted_sids(size, 24, 3, 0)).trie
        arrays = (*trie.child_begin, *trie.child_code, *trie.child_row)
        assert rows[label, "trie", "MiB"] == pytest.approx(sum(array.nbytes for array in arrays) / 2**20)
        assert rows[label, "process before", "MiB peak"] <= rows[label, "process", "MiB peak"] < 200


def test_an_exported_table_has_no_other_copy() -> None:
    """The graph that is exported once must not already hold a table."""
    exported = SasRec(SasRecConfig(**SASREC), slate_size=3, seed=1)  # type: ignore[arg-type]
    sizes = [int(np.prod(tensor.dims)) for tensor in exported.model.graph.initializer]
    assert isinstance(exported.model, onnx.ModelProto)
    assert max(sizes) < 8 * 100
