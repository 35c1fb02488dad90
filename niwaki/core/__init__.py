"""The values everything else is made of: slices, groups, search spaces, plans, costs, numbers.

Imports numpy and torch only, and nothing else of niwaki but its errors.
"""
