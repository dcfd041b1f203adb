"""Others' code that pages carry, each library as one file (`make vendor`; see LICENSES.txt)."""

from importlib.resources import files


def source(name: str) -> str:
    """A file of this folder as text."""
    return files("atlasmap.vendor").joinpath(name).read_text(encoding="utf-8")
