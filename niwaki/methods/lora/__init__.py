"""Pruning while fine-tuning low-rank adapters (LHSPG): adapter pairs, the method, and how much data recovery needs.

Imports core, per_unit, criteria, selection and methods.
"""
