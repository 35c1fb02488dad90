"""Accuracy at a given cost: every method beside dense training and baselines, on the same tasks, steps and seeds."""
