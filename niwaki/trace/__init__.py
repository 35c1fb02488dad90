"""From a running model to a record of the operators it called.

``tracer`` runs the model in all modes, ``recorder`` records one run under a dispatch mode; ``graph`` is the record and
``describe`` shows it as text. ``tracked``: integers with the expression that they were computed by; ``attributes``: the
integers of the modules; ``calls``: the Python-level calls and their numbers. ``extent``: which numbers are tracked;
``fidelity``: as many as do not change what the model does, found by ``matching`` a tracked run with an untracked one.
``model_state`` restores the model; ``inventory``: its modules and tensors. ``source_lines``: where in the source an
operator was called. ``shape_only``: runs without arithmetic; ``fake``: runs with tensors that have no memory;
``replay``: the decisions that depended on data. ``gradients``: whether recording them changes the network.
``operators``: facts read from schemas; ``structures``: tensors in inputs and outputs; ``memory``: the value at an
address, for tensors that no operator returned; ``functions``: hooks and the variables that they name; ``remade``:
buffers that the code replaces. Imports core.
"""
