"""How far to trust a label: calibrated probabilities, prediction sets, novelty, verdicts.

Everything is learned from reference cells whose whole batch was held out, never from a query.
"""
