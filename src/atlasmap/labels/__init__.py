"""The atlas and its labels: classifier, kNN, UMAP, and calibration of how far to trust a label.

Calibration is learned from held-out reference cells, never from a query.
"""
