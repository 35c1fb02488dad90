"""From a running model to a record of the operators it called.

``tracer`` runs the model in all modes, ``recorder`` records one run under a dispatch mode; ``graph`` is the record and
``describe`` shows it as text. ``tracked``: integers that remember where they came from; ``attributes``: those of the
modules; ``calls``: the Python-level calls and their numbers. ``extent``: which numbers are tracked; ``fidelity``: as
many as leave the model what it is, by ``matching`` a tracked run with one in which none is. ``model_state`` leaves the
model as it was; ``inventory``: what it is made of. ``source_lines``: where in the source an operator was called.
``shape_only``: runs without arithmetic; ``fake``: with tensors that have no memory; ``replay``: what the data of a run
decided. ``gradients``: whether recording them changes the network. ``operators``: what schemas say; ``structures``:
tensors in inputs and outputs; ``memory``: which value lies where, for tensors that no operator gave; ``functions``:
hooks and the variables that they name; ``remade``: buffers that the code makes anew. Imports core.
"""
