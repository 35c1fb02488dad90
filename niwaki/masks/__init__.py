"""Mask generators: networks that are trained to say which units another network needs. One file per generator.

``protocol``: what a generator is; ``registry``: all of them by name; ``heads``: what those of groups share;
``training``: a step of a generator's training. Imports core, per_unit and selection.
"""

from niwaki.masks.gru import GRUController as GRUController
from niwaki.masks.independent import IndependentLogits as IndependentLogits
from niwaki.masks.protocol import MaskGates as MaskGates
from niwaki.masks.protocol import MaskGenerator as MaskGenerator
from niwaki.masks.registry import generators as generators
from niwaki.masks.shared_head import SharedHead as SharedHead
from niwaki.masks.transformer import TransformerController as TransformerController
