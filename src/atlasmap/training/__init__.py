"""Training on tensors: cells, splits, objectives and the one loop."""
