"""Mask generators alone, on a network that does not change."""
