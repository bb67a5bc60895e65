"""A catalog that stays on the device between runs: the same answers, sent only when it changed."""

from dataclasses import replace

import numpy as np
import pytest
from exported_graphs import Exported, arrays, as_batch
from search_problems import random_problem

from service.catalog import CatalogSnapshot, NewItems
from service.domain import Item
from service.errors import RunnerError
from service.inference.device import DeviceInputs
from service.inference.ort_runner import CUDA_PROVIDER, OrtRunner
from service.inference.runner import Batch


def grown(catalog: CatalogSnapshot, sizes: tuple[int, ...]) -> CatalogSnapshot:
    """With one item more, wherever there is room."""
    taken = {tuple(sid) for sid in catalog.sids_NL.tolist()}
    sid = next(sid for sid in np.ndindex(*sizes) if sid not in taken)
    assert catalog.embeddings_NE is not None
    new = NewItems(
        items=[Item(item_id="new")],
        sids_AL=np.array([sid], np.int32),
        embeddings_AE=np.zeros((1, catalog.embeddings_NE.shape[1]), np.float32),
    )
    return catalog.changed("grown", (), new)


def test_answers_are_the_same_bit_for_bit_while_the_catalog_changes(mixture: Exported) -> None:
    keeping = OrtRunner(mixture.runner.manifest, mixture.folder, num_threads=1, keeps_catalog=True)
    plain = OrtRunner(mixture.runner.manifest, mixture.folder, num_threads=1)
    rng = np.random.default_rng(0)
    for _ in range(6):
        problem = random_problem(rng, mixture.codebook_sizes, 4, most_items=40, longest_history=4)
        batch = as_batch(problem, 5)
        first = batch.catalog
        gone = first.changed("gone", [replace(first.items[0], removed=True)])
        for catalog in (first, gone, grown(gone, mixture.codebook_sizes), first, first):
            asked = against(batch, catalog)
            before = [array.copy() for array in (catalog.sids_NL, *catalog.trie.child_row)]
            for ours, theirs in zip(arrays(keeping.run(asked)), arrays(plain.run(asked)), strict=True):
                assert np.array_equal(ours, theirs)
            for array, then in zip((catalog.sids_NL, *catalog.trie.child_row), before, strict=True):
                assert np.array_equal(array, then), "what is sent to a device must not be written into a snapshot"


def against(batch: Batch, catalog: CatalogSnapshot) -> Batch:
    everything = np.full_like(batch.excluded_rows_BX, -1)
    return replace(
        batch,
        catalog=catalog,
        history_rows_BT=np.minimum(batch.history_rows_BT, catalog.num_items - 1),
        excluded_rows_BX=everything,
        filter_slots_B=np.zeros_like(batch.filter_slots_B),
        allowed_cumsum_FN=catalog.allowed_cumsum()[None],
    )


class Recorder:
    """Stands for a session: only its binding counts."""

    def __init__(self) -> None:
        self.bound: dict[str, object] = {}

    def io_binding(self) -> "Recorder":
        return self

    def bind_ortvalue_input(self, name: str, value: object) -> None:
        self.bound[name] = value

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.bound[name] = array

    def bind_output(self, name: str, device: str) -> None:
        assert device == "cpu"

    def run_with_iobinding(self, binding: "Recorder") -> None:
        assert binding is self

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return []


def test_only_what_changed_is_sent_and_memory_is_used_again() -> None:
    session = Recorder()
    inputs = DeviceInputs(session, "cpu")  # type: ignore[arg-type]
    cumsum = np.arange(5, dtype=np.int32)
    feeds = {"sids": np.ones((4, 3), np.int32), "allowed_cumsum": cumsum[None], "history_codes": np.zeros(3, np.int32)}
    inputs.run((), feeds)
    assert (inputs.num_sent, inputs.num_updated) == (2, 0)
    inputs.run((), {**feeds, "allowed_cumsum": cumsum[None], "history_codes": np.ones(3, np.int32)})
    assert (inputs.num_sent, inputs.num_updated) == (2, 0), "another view of the same memory is the same array"
    value = session.bound["sids"]
    inputs.run((), {**feeds, "sids": np.full((4, 3), 7, np.int32)})
    assert (inputs.num_sent, inputs.num_updated) == (3, 1)
    assert session.bound["sids"] is value
    assert value.numpy().tolist() == [[7] * 3] * 4  # type: ignore[attr-defined]
    assert feeds["sids"].tolist() == [[1] * 3] * 4
    inputs.run((), {**feeds, "sids": np.ones((5, 3), np.int32)})
    assert (inputs.num_sent, inputs.num_updated) == (4, 1)
    assert isinstance(session.bound["history_codes"], np.ndarray)


def test_a_gpu_that_is_not_there_is_refused_with_what_to_do(mixture: Exported) -> None:
    with pytest.raises(RunnerError, match=r"CUDAExecutionProvider is not in this onnxruntime.*oneslate\[gpu\]"):
        OrtRunner(mixture.runner.manifest, mixture.folder, provider=CUDA_PROVIDER)
