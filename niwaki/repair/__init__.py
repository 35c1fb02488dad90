"""Repair a cut network without training: biases, statistics and weights that replace a part of the removed units.

``fold``: constant outputs of removed units go into biases. ``compensate``: least squares. ``batchnorm``: statistics are
re-estimated. ``consumers``: the layers that read removed units; ``calibration``: the data that repairs use. Imports
core, trace and surgery.
"""
