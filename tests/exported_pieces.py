"""Each small model exported once for all tests: random weights depend on the configuration and the seed alone."""

from functools import lru_cache

import onnx

from model_export.model import Generator, GeneratorSpec, ModelConfig
from model_export.onnx.pieces import export_pieces


class _Same:
    """A generator that equals every other of its configuration."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._key: tuple[ModelConfig, GeneratorSpec] = (generator.config, generator.spec)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._key == other._key


@lru_cache(maxsize=16)
def _export(same: _Same) -> dict[str, onnx.ModelProto]:
    return export_pieces(same.generator)


def pieces_once(generator: Generator) -> dict[str, onnx.ModelProto]:
    """As `export_pieces`, for generators that differ in nothing but their configuration."""
    return _export(_Same(generator))
