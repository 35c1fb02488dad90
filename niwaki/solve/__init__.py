"""From the record of a run to a search space: rules give equations between ids, components of ids are the units.

``label``: runs the rules (``repeats``: not twice), and follows through them what is not a constraint: factors
(``scaling``), positions that were found (``places``). ``equations``: solves the ids, with ``blocks`` and ``refine``.
``alike``: modules that no run reached. ``sizes``: solves the numbers in Python, with the tables of ``axes``. ``units``
and ``build``: groups, costs, pins. ``describe``: all of that as text. Imports core, trace, program,
rules and surgery.
"""
