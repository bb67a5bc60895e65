"""The generator: attention, mixture of experts, encoder, decoder, losses. No input or output."""

from model_export.model.config import GeneratorSpec, ModelConfig
from model_export.model.generator import Generator, HistoryBatch
from model_export.model.items import ItemVectors
from model_export.model.trie import TriePaths

__all__ = ["Generator", "GeneratorSpec", "HistoryBatch", "ItemVectors", "ModelConfig", "TriePaths"]
