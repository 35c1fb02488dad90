"""Repairs of a cut network without training: biases, statistics and weights that make up for what was removed.

``fold``: constant outputs of removed units go into biases. ``compensate``: least squares. ``batchnorm``: statistics are
re-estimated. ``consumers``: the layers that read removed units; ``calibration``: the data that repairs look at.
Imports core, trace and surgery.
"""
