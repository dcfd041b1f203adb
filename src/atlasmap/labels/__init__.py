"""The atlas and its names: labels by classifier and kNN, the map, and how far to trust a label.

What is learned about trust is learned from reference cells whose whole batch was held out, never
from a query.
"""
