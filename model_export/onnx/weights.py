"""Writes the graphs of a bundle, and the large tensors of all of them into one file, each distinct one once."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from service.bundle.manifest import Purpose

WEIGHTS_FILE = "weights.data"
_LEAST_BYTES = 1024
"""Smaller tensors stay inside their graphs: runtimes fold constants (axes, shapes) only where they see them."""
_ALIGNMENT = 64
"""Of every tensor in the file, which runtimes map into memory and compute on in place."""


def graph_file(purpose: Purpose) -> str:
    """Name of the ONNX file of a purpose."""
    return f"{purpose}.onnx"


def save_graphs(graphs: Mapping[Purpose, onnx.ModelProto], folder: Path) -> None:
    """Writes `<purpose>.onnx` for each graph, and `weights.data` beside them; replaces what is there."""
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS_FILE).open("wb") as weights:
        for purpose, graph in graphs.items():
            copy = onnx.ModelProto()
            copy.CopyFrom(graph)
            for tensor in copy.graph.initializer:
                _move_out(tensor, weights, places)
            (folder / graph_file(purpose)).write_bytes(copy.SerializeToString())


def _move_out(tensor: TensorProto, weights: BinaryIO, places: dict[bytes, tuple[int, int]]) -> None:
    """Leaves in a large tensor only where its bytes stand in the file; appends them if they do not yet."""
    array = np.ascontiguousarray(numpy_helper.to_array(tensor))
    if array.nbytes < _LEAST_BYTES:
        return
    contents = array.tobytes()
    digest = sha256(contents).digest()
    if digest not in places:
        weights.write(bytes(-weights.tell() % _ALIGNMENT))
        places[digest] = (weights.tell(), len(contents))
        weights.write(contents)
    offset, length = places[digest]
    emptied = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b"")
    external_data_helper.set_external_data(emptied, WEIGHTS_FILE, offset=offset, length=length)
    emptied.ClearField("raw_data")
    tensor.CopyFrom(emptied)
