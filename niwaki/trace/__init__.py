"""From a running model to a record of the operators it called.

``numbers``: integers that remember where they came from. ``preserve``: leaves the model as it was. ``calls``: the
Python-level calls and their numbers. ``tracer``: one eager run under a dispatch mode. ``graph``: the record.
Imports core and torch.
"""
