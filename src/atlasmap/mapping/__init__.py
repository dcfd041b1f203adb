"""Mapping: training references, and mapping query batches onto them. AnnData in, bundle out."""
