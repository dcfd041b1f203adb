"""Scores: predicted labels against truth, embeddings by scib-metrics. Arrays in, tables out."""
