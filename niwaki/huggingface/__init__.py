"""Cut networks of Hugging Face transformers as ordinary checkpoints, which load without niwaki.

A configuration file says one number for all layers: build the search space with ``layout="uniform"``. What a family's
configuration cannot say at all, such as fewer heads of the same size in GPT-2 and BERT, must stay (``ignored=``), or
the network is saved by `niwaki.save` and loaded by `niwaki.load`.
"""

from niwaki.huggingface.configuration import described
from niwaki.huggingface.families import FAMILIES, Family, Size
from niwaki.huggingface.saving import save_pretrained

__all__ = ["FAMILIES", "Family", "Size", "described", "save_pretrained"]
