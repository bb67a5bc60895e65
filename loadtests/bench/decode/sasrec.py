"""SASRec in ONNX Runtime: one product with every item's embedding, and the best few. What one would pick instead.

Legend: B batch, T history length, N items, D width, K slate size.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional as F

from loadtests.bench.decode.graphs import in_onnx_runtime
from model_export.evaluate.baselines.sasrec_config import SasRecConfig
from model_export.evaluate.baselines.sasrec_model import SasRecModel
from model_export.onnx.pieces import export_module

_TABLE_FILE = "items.data"


class TopItems(nn.Module):
    """Scores all items by their dot product with the last hidden state. A softmax would not change the order."""

    def __init__(self, config: SasRecConfig, slate_size: int) -> None:
        super().__init__()
        self.model, self.slate_size = SasRecModel(config, 1), slate_size

    def forward(self, rows_BT: Tensor, items_ND: Tensor) -> Tensor:
        """The best rows [B, K]."""
        hidden_BD = self.model(rows_BT, items_ND)[:, -1]
        return F.linear(hidden_BD, items_ND).topk(self.slate_size, dim=1).indices


class SasRec:
    """The same network for catalogs of any size: exported once, the table of items then written as its weights."""

    def __init__(self, config: SasRecConfig, slate_size: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._config, self._seed = config, seed
        calls: list[tuple[Tensor, ...]] = [
            (torch.zeros(batch, config.max_length, dtype=torch.int32), torch.zeros(items, config.width))
            for batch, items in ((3, slate_size + 3), (4, slate_size + 5))
        ]
        self.module = TopItems(config, slate_size).eval()
        self.model = export_module(self.module, calls).with_weights_of(self.module)
        """Takes rows and table."""

    def session(self, num_items: int, num_threads: int) -> ort.InferenceSession:
        """Loaded for a catalog of that size, with a random table; takes the rows [B, T] alone.

        As weights, not as an input, the table is laid out for the product once, when the session loads.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        table = model.graph.input.pop()
        with tempfile.TemporaryDirectory() as folder:
            self.table(num_items).tofile(Path(folder) / _TABLE_FILE)
            entry = TensorProto(name=table.name, data_type=TensorProto.FLOAT, dims=(num_items, self._config.width))
            entry.data_location = TensorProto.EXTERNAL
            entry.external_data.add(key="location", value=_TABLE_FILE)
            model.graph.initializer.append(entry)
            path = Path(folder) / "sasrec.onnx"
            path.write_bytes(model.SerializeToString())
            return in_onnx_runtime(path, num_threads)

    def table(self, num_items: int) -> npt.NDArray[np.float32]:
        """Random vectors [N, D]."""
        rng = np.random.default_rng([self._seed, num_items])
        table_ND = rng.standard_normal((num_items, self._config.width), dtype=np.float32)
        table_ND *= np.float32(self._config.embedding_std)
        return table_ND
