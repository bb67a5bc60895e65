"""The files of one `--data` path: found with or without `.gz`, decompressed, and hashed as they are read."""

import gzip
import hashlib
import zlib
from fnmatch import fnmatchcase
from pathlib import Path

from model_export.data.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"


class Inputs:
    """One data folder, or one data file with its neighbours.

    `main` is the file that the user named, None where a folder was named. A file that is absent under its plain
    name is looked for with `.gz` appended. Every file read goes into `sha256()`.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        with_gz = path.with_name(path.name + ".gz") if path.name else path
        if path.is_dir():
            self.folder, self.main = path, None
        elif path.is_file() or with_gz.is_file():
            self.folder = path.parent
            self.main = path if path.is_file() else with_gz
        else:
            raise DataError(f"{path}: no such file or folder")
        self._digests: dict[str, str] = {}

    def find(self, *patterns: str) -> list[Path]:
        """Files of the folder whose name, `.gz` aside, matches a pattern; a plain file hides its `.gz` twin."""
        names: dict[str, Path] = {}
        for file in sorted(self.folder.iterdir()):
            name = plain_name(file)
            if file.is_file() and any(fnmatchcase(name, pattern) for pattern in patterns):
                names.setdefault(name, file)
        return list(names.values())

    def optional(self, *patterns: str) -> Path | None:
        """The one file that matches, or None. `DataError` where several do."""
        files = self.find(*patterns)
        if len(files) > 1:
            listed = ", ".join(file.name for file in files)
            raise DataError(f"{self.folder}: several files match {' or '.join(patterns)}: {listed}; name one of them")
        return files[0] if files else None

    def require(self, *patterns: str) -> Path:
        """The one file that matches. `DataError` where none or several do."""
        file = self.optional(*patterns)
        if file is None:
            raise DataError(f"{self.folder}: no file {' or '.join(patterns)} (or the same with .gz)")
        return file

    def read_bytes(self, file: Path) -> bytes:
        """Content of a file, decompressed; the file's hash is noted. `DataError` where it cannot be read."""
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        name = file.relative_to(self.folder).as_posix() if file.is_relative_to(self.folder) else file.name
        self._digests[name] = hashlib.sha256(content).hexdigest()
        if not content.startswith(GZIP_MAGIC):
            return content
        try:
            return gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file}: damaged gzip file: {error}") from error

    def read_text(self, file: Path, encoding: str = "utf-8-sig") -> str:
        """Text of a file. Bytes outside the encoding become U+FFFD, which no id may hold: such rows are rejected."""
        return self.read_bytes(file).decode(encoding, errors="replace")

    def sha256(self) -> str:
        """Digest over names and content hashes of all files read so far."""
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


def plain_name(file: Path) -> str:
    """File name without a trailing `.gz`."""
    return file.name.removesuffix(".gz")
