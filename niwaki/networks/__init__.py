"""Build networks by name, for training and for inspection. Each source of networks is one file and one import line
here.

Imports trace. The library that a source is named after is imported only when one of its networks is requested.
"""

from niwaki.networks import built_in, from_timm, from_torchvision, from_transformers, from_file  # noqa: F401, I001 (the order in messages)
from niwaki.networks.build import build_model, channels_of, example_network
from niwaki.networks.source import ExampleNetwork, ImageTask, NetworkRequest, forms

__all__ = ["ExampleNetwork", "ImageTask", "NetworkRequest", "build_model", "channels_of", "forms", "example_network"]
