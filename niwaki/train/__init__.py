"""The job of `niwaki train`: data, the training loop that prunes on the way, and its checkpoints.

The loop calls the public names of niwaki, as a loop of your own would. Nothing here prints: callers pass an observer.

Imports core, networks, io, methods, report and niwaki.
"""
