"""From a running model to a record of the operators it called.

``numbers``: integers that remember where they came from; ``attributes`` and ``floats``: those of the modules.
``preserve``: leaves the model as it was. ``calls``: the Python-level calls and their numbers. ``tracer``: one eager run
under a dispatch mode; ``hollow``: without its arithmetic; ``pretend``: with tensors that have no memory; ``decisions``:
what its data decided; ``operators``: what schemas say; ``structures``: tensors inside inputs and outputs.
``graph``: the record. Imports core and torch.
"""
