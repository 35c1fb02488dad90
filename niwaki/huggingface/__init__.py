"""Cut networks of Hugging Face transformers as ordinary checkpoints, which load without niwaki.

A configuration file says one number for all layers: build the search space with ``layout="uniform"``. What a family's
configuration cannot say at all, such as fewer heads of the same size in GPT-2 and BERT, must stay (``ignored=``, which
`can_save` tells), or the network is saved by `niwaki.save` and loaded by `niwaki.load`.

Where one number is true for all layers, the ``config`` of a cut network says it, so that the network's own
``save_pretrained``, caches and adapters find the sizes it has; where not, its own ``save_pretrained`` refuses.

Imports core, trace, surgery, io and selection.
"""

from niwaki.core.integrations import register
from niwaki.huggingface.configuration import described
from niwaki.huggingface.families import FAMILIES, Family, Size
from niwaki.huggingface.following import TransformersIntegration
from niwaki.huggingface.saveable import CanSave, can_save
from niwaki.huggingface.saving import save_pretrained

__all__ = ["FAMILIES", "CanSave", "Family", "Size", "can_save", "described", "save_pretrained"]

register(TransformersIntegration())
