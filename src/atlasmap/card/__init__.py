"""The model card of a bundle: description, fit to the data, and how to map onto it.

Sections and metrics are those of scvi-hub's model cards; the front matter is for Hugging Face.
"""
