"""The bundles of one folder: what may be activated."""

import logging
from dataclasses import dataclass
from pathlib import Path

from service.bundle import Manifest
from service.bundle.reader import read_manifest
from service.errors import BundleError, UnknownModel

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registered:
    """A bundle that is there. Only its manifest was read; whether it can be trusted is seen when it is opened."""

    path: Path
    manifest: Manifest


class Registry:
    """Every folder below one folder that holds a manifest; looked at anew each time it is asked."""

    def __init__(self, folder: Path) -> None:
        """ValueError: no such folder."""
        if not folder.is_dir():
            raise ValueError(f"ONESLATE_MODELS_DIR: {folder} is no directory")
        self._folder = folder

    def all(self) -> dict[str, Registered]:
        """By model version. A folder without a manifest that can be read is left out, and logged at debug level.

        A name that begins with a dot is left out, too: a bundle is copied there and then renamed, so that nobody sees
        half of it. BundleError: the registry's own folder cannot be read.
        """
        found: dict[str, Registered] = {}
        for path in self._paths():
            try:
                if not (path / "manifest.json").is_file():
                    continue
                manifest = read_manifest(path / "manifest.json")
            except (BundleError, OSError) as error:
                _log.debug("left out of the models: %s", error)
                continue
            if manifest.model_version in found:
                _log.warning("%s is model %s again: left out", path, manifest.model_version)
                continue
            found[manifest.model_version] = Registered(path, manifest)
        return found

    def find(self, version: str) -> Registered:
        """The bundle of a version.

        Raises:
            UnknownModel: there is none.
            BundleError: there is a folder of that name whose manifest cannot be read.
        """
        found = self.all()
        if version in found:
            return found[version]
        # A damaged manifest does not say whose it is; the folder's name may.
        if version in {path.name for path in self._paths()}:
            read_manifest(self._folder / version / "manifest.json")
        raise UnknownModel(f"{version!r} is none of the registered models: {', '.join(found) or 'there is none'}")

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise BundleError(f"{self._folder}: {error.strerror or error}") from error
