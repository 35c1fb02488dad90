"""Save cut networks of Hugging Face transformers as ordinary checkpoints, which load without niwaki.

A configuration file has one number for all layers: build the search space with ``layout="uniform"``. Sizes that cannot
be expressed in a family's configuration, such as fewer heads of the same size in GPT-2 and BERT, must be kept
(``ignored=``; `can_save` names the patterns), or the network is saved by `niwaki.save` and loaded by `niwaki.load`.

If all layers have equal sizes, the ``config`` of a cut network is updated, so that the network's own
``save_pretrained``, caches and adapters find the new sizes; otherwise its own ``save_pretrained`` refuses.

Imports core, trace, surgery, io, erasing and selection.
"""

from niwaki.core.integrations import register
from niwaki.huggingface.configuration import described
from niwaki.huggingface.families import FAMILIES, Family, Size
from niwaki.huggingface.following import TransformersIntegration
from niwaki.huggingface.saveable import CanSave, can_save
from niwaki.huggingface.saving import save_pretrained

__all__ = ["FAMILIES", "CanSave", "Family", "Size", "can_save", "described", "save_pretrained"]

register(TransformersIntegration())
