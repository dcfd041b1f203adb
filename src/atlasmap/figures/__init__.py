"""Figures drawn from finished tables: each function takes tables and returns a Figure."""
