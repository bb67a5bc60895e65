"""The bundle: the one directory format between the trainer, which writes it, and the service, which reads it.

Holds no torch and no onnxruntime: pydantic, numpy and pyarrow.
"""

from service.bundle.manifest import ActionSpec, GoldenTolerance, GraphSpec, Manifest, Variant
from service.bundle.reader import Bundle, BundledCatalog
from service.bundle.writer import write_bundle, write_catalog

__all__ = [
    "ActionSpec",
    "Bundle",
    "BundledCatalog",
    "GoldenTolerance",
    "GraphSpec",
    "Manifest",
    "Variant",
    "write_bundle",
    "write_catalog",
]
