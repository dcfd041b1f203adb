"""Comparison with scvi-tools, where it is installed."""
