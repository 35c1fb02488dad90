"""The values everything else is made of: slices, groups, search spaces, plans, edits, costs, numbers.

Imports nothing. Needs numpy and torch only.
"""
