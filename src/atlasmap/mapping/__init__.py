"""Mapping: a trained reference, and query batches placed in its space. AnnData in, bundle out."""
