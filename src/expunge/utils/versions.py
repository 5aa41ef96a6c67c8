"""The versions of what computes."""

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
"""That of Expunge."""


def versions_of(*packages: str) -> dict[str, str]:
    """The version of Expunge, as its source has it, and those of `packages` that are installed.

    A source tree that Python finds by its path alone is not installed, and runs all the same.
    """
    found = {"expunge": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
