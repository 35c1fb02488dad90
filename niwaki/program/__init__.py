"""Exported programs as models: every size in them can be edited.

``entry``: the models that public functions accept. ``sizes``: which whole numbers of a graph are sizes. ``module``: a
module that runs an exported program and holds its sizes as attributes, so that tracing, solving and cutting treat them
like any attribute. ``convert``: from a model to a program, and from a cut program back to
`torch.export.ExportedProgram`. Imports core and trace.
"""
