"""The model card of a bundle: what it is, how well it fits its data, how to map onto it.

Sections and metrics are those of the scvi-hub's cards; front matter is what Hugging Face reads.
"""
