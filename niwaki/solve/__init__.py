"""From the record of a run to a search space: rules give equations between ids, components of ids are the units.

``docs/engine.md`` takes a small network through the steps, which are, in order: ``propagate`` applies the rules and
collects their constraints (``call_cache`` remembers the calls of earlier runs); ``rescaling`` and ``signs`` follow
factors and signs, and ``unreached`` adds modules that no run reached. ``components`` solves the ids, ``factorise``
refines products. ``groups`` finds similar units; ``sizes`` solves the numbers in Python, with the axes of
``axis_table``. ``build`` makes the space, with the ``costs``. ``dry_run`` tries it and, with ``compare``, ``blame`` and
``mend``, pins what fails. ``describe`` shows all of this as text. Imports core, trace, program, rules and surgery.
"""
