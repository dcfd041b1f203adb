"""Forecast of a run's time and memory, and its progress."""
