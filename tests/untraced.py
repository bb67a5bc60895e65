"""Coverage looks away while torch traces a piece: it would be asked about every one of many calls of torch's own."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from model_export.onnx import pieces


@contextmanager
def untraced() -> Iterator[None]:
    """While pieces are exported."""

    def without_coverage(*arguments: Any) -> Any:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return traced(*arguments)
        finally:
            sys.settrace(trace)

    traced: Callable[..., Any] = pieces._traced
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_traced", without_coverage)
        yield
