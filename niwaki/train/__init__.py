"""The jobs of `niwaki train` and `niwaki prune`: data, the training loop that prunes on the way, its checkpoints.

The loop calls the public names of niwaki, as a loop of your own would. Nothing here prints: callers pass an observer.

Imports core, networks, io, methods, post_training, report and niwaki.
"""
