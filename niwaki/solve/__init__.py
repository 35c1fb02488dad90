"""From the record of a run to a search space: rules give equations between ids, components of ids are the units.

``label``: runs the rules. ``equations``: solves the ids. ``alike``: modules that no run reached. ``sizes``: solves the
numbers in Python. ``build``: groups, costs, pins. Imports core, trace and rules.
"""
