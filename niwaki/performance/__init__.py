"""Latency and activation memory: measured, predicted from tables of operators, and limited by a budget.

``measure``: interleaved rounds of networks. ``operators``: the time of each operator; ``predict``: of a plan, from
these. ``activations``: peak memory. ``meters`` and ``fit``: budgets in measured quantities. Imports core, trace,
program, surgery and selection.
"""
