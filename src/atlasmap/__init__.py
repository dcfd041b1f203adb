"""atlasmap: reproducible single-cell atlas mapping."""

__version__ = "0.1.0"
