"""Scores of predicted labels (against the truth) and of embeddings (scib-metrics)."""
