"""Load tests (HTTP only) and benchmarks."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as in service/__init__.py: some benches import ONNX Runtime alone
