"""Exported programs as models: every size in them can be edited.

``sizes``: which whole numbers of a graph are sizes. ``program``: a module that runs an exported program and keeps its
sizes as attributes, so that tracing, solving and cutting treat them like any attribute. ``exporting``: from a model to
a program, and from a cut program back to `torch.export.ExportedProgram`. Imports core and trace.
"""
