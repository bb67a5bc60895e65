"""Inputs that stay where the graph computes: a catalog is sent to the device when it changes, not with every batch."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

Array = npt.NDArray[Any]

_OF_THE_CATALOG: Final = ("sids", "allowed_cumsum", "child_", "item_embeddings")
"""How the names of inputs begin that are as large as the catalog and the same from batch to batch."""


class DeviceInputs:
    """Runs a session with the catalog's arrays on its device. For one thread at a time, as runners are."""

    def __init__(self, ort_session: ort.InferenceSession, device: str) -> None:
        """Nothing is sent yet.

        Args:
            ort_session: Of the graph.
            device: `cuda`; `cpu` works too and gains nothing.
        """
        self._ort_session = ort_session
        self._device = device
        self._resident: dict[str, tuple[Array, ort.OrtValue]] = {}
        """By input: the array that was sent, kept alive so that nobody else gets its address, and its copy."""
        self.num_sent = 0
        """Arrays of catalogs sent so far ..."""
        self.num_updated = 0
        """... and of these, how many into memory that was there already."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """As `InferenceSession.run`: the named outputs, on the host."""
        binding = self._ort_session.io_binding()
        for name, array in feeds.items():
            if name.startswith(_OF_THE_CATALOG):
                binding.bind_ortvalue_input(name, self._on_device(name, array))
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in outputs:
            binding.bind_output(name, "cpu")
        self._ort_session.run_with_iobinding(binding)
        found: list[Array] = binding.copy_outputs_to_cpu()
        return found

    def _on_device(self, name: str, array: Array) -> ort.OrtValue:
        sent = self._resident.get(name)
        if sent is not None and _is_same(sent[0], array):
            return sent[1]
        self.num_sent += 1
        array = np.ascontiguousarray(array)
        if sent is not None and sent[0].shape == array.shape and sent[0].dtype == array.dtype:
            value = sent[1]
            value.update_inplace(array)
            self.num_updated += 1
        else:
            # A copy: the CPU's values would share the array's memory, and writing into them would change a catalog.
            value = ort.OrtValue.ortvalue_from_numpy(array.copy(), self._device)
        self._resident[name] = (array, value)
        return value


def _is_same(one: Array, other: Array) -> bool:
    """The same memory, seen the same way: arrays of a snapshot never change."""
    return one is other or (
        one.__array_interface__["data"] == other.__array_interface__["data"]
        and one.shape == other.shape
        and one.strides == other.strides
        and one.dtype == other.dtype
    )
