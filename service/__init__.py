"""OneSlate's online half: everything here runs without torch."""

import os

# ONNX Runtime's wheels tell their maker how they are used, from their import on, unless told not to before it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
