"""Measure latency and activation memory, predict them from the times of operators, and choose by limits on them.

``measure``: interleaved rounds of networks. ``operators``: the time of each operator; ``predict``: of a plan, from
these. ``activations``: peak memory. ``meters`` and ``fit``: budgets in measured quantities; ``timed``: in predicted
ones, ``merged`` for networks whose adapters are to be merged; ``union_latency``: of union streams,
``implant_times``: of implants. Imports core, trace, program, criteria, surgery, selection, implants, unions and
methods.
"""
