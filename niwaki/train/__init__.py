"""The main job: data, built-in models, the training loop that prunes on the way, and its checkpoints.

Built on the public names of niwaki alone, as a user's own loop would be. Never prints: callers pass an observer.

Imports networks, io, methods, report and niwaki.
"""
