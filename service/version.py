"""Which OneSlate this is."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Of the installed package; `unknown` when run from a source tree."""
    try:
        return version("oneslate")
    except PackageNotFoundError:
        return "unknown"
