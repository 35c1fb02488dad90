"""Pruning while fine-tuning low-rank adapters (LHSPG, ATP): pairs, the methods, and how much data recovery needs.

Imports core, per_unit, criteria, selection, masks and methods.
"""
