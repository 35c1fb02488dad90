"""From a running model to a record of the operators it called.

``numbers``: integers that remember where they came from; ``attributes`` and ``floats``: those of the modules.
``preserve``: leaves the model as it was; ``inventory``: what it is made of. ``calls``: the Python-level calls and their
numbers. ``gradients``: whether recording them changes the
network. ``extent``: which numbers are tracked; ``fidelity``: as many as leave the model what it is, by ``matching`` a
tracked run with one in which none is. ``tracer``: eager runs in all modes; ``recorder``: one of them under a dispatch
mode; ``lines``: where in the source it is; ``hollow``: without its arithmetic, on ``zeros``; ``pretend``: with tensors
that have no memory; ``decisions``: what its data decided; ``operators``: what schemas say; ``structures``: tensors in
inputs and outputs; ``remade``: buffers that the code makes anew. ``graph``: the record; ``describe``: the same as text.
Imports core.
"""
