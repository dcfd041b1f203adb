"""Import and export of scvi-tools models; no code from a foreign file is ever executed."""
