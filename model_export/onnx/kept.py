"""Exported pieces on disk: a machine traces a configuration once, and not every build of it.

What is traced depends on shapes and settings, never on weights, so that the next build of a recipe finds its pieces
here, but for the few whose shapes come from the data; to trace all is most of an export's time. `export` compares the
graph with the model either way.
"""

import functools
import hashlib
import logging
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

import onnx

_log = logging.getLogger(__name__)
_DIGEST_BYTES: Final = 32
_ADDRESS: Final = " at 0x"
"""Of an object that says no more of itself: the next process has it elsewhere."""


class KeptPieces:
    """Pieces of this code and these libraries, a file each. May be deleted at any time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> "KeptPieces | None":
        """Below `XDG_CACHE_HOME`, or else `~/.cache`; None: there is no home."""
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:
            return None
        return cls(home / "oneslate" / "pieces")

    def find(self, traced: object) -> onnx.ModelProto | None:
        """The piece; None: it has to be traced.

        Args:
            traced: All that a trace depends on, but for code; its `repr` names it.
        """
        if (path := self._path(traced)) is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:  # it is traced and kept; where that cannot be done, `keep` says so
            return None
        digest, said = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(said).digest() != digest:  # cut short by a crash of the machine: it is written anew
            return None
        return onnx.load_model_from_string(said)

    def keep(self, traced: object, model: onnx.ModelProto) -> None:
        """Whole or not at all. A folder that cannot be written to costs time and no build: a warning says so, once."""
        if (path := self._path(traced)) is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            said = model.SerializeToString()
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".draft-") as draft:
                (Path(draft) / path.name).write_bytes(hashlib.sha256(said).digest() + said)
                (Path(draft) / path.name).replace(path)
        except OSError as error:
            _say_once(f"exported pieces are not kept for the next build: {self.folder}: {error.strerror}")

    def _path(self, traced: object) -> Path | None:
        said = repr(traced)
        if _ADDRESS in said:
            return None
        return self.folder / hashlib.sha256(f"{_CODE} {said}".encode()).hexdigest()


def _code() -> str:
    """Of what traces: this package's sources and the libraries' versions."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    libraries = [f"{name} {version(name)}" for name in ("torch", "onnx", "onnx-ir", "onnxscript")]
    return " ".join((digest.hexdigest(), *libraries, sys.version))


_CODE: Final = _code()
"""Read when this is imported, as the code was: an export may come hours later."""


@functools.cache
def _say_once(text: str) -> None:
    _log.warning(text)
