"""Mask generators: networks that are trained to say which units another network needs. One file per generator.

``protocol``: what a generator is; ``registry``: all of them by name; ``heads``: what those of groups share;
``training``: a step of a generator's training. ``ddp``: masks that are learnt without chance for a network that does
not change, in place of scores; ``learner``: what can be in their place; ``folding``: scales that go into weights.
Imports core, trace, per_unit, criteria, surgery and selection.
"""

from niwaki.masks.ddp import DDPMasks as DDPMasks
from niwaki.masks.gru import GRUController as GRUController
from niwaki.masks.independent import IndependentLogits as IndependentLogits
from niwaki.masks.protocol import MaskGates as MaskGates
from niwaki.masks.protocol import MaskGenerator as MaskGenerator
from niwaki.masks.registry import generators as generators
from niwaki.masks.shared_head import SharedHead as SharedHead
from niwaki.masks.transformer import TransformerController as TransformerController
