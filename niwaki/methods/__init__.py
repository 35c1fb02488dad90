"""Methods: what is removed while a network trains. One file per method, attached to any torch optimizer.

A method is a selector (which units leave, and when) and an update (what happens to them around each step): ``parts``.
``method`` has all the rest, ``trained_units`` the units that both work on. Selectors: ``portions`` with the scores of
``window_scores`` (HESSO) or ``tried_scores`` (HESSO-CRIC); ``vanishing`` with what is ``chosen_once``, by
``redundancy`` (DHSPG, H2SPG) or ``mixed_once`` (H2SPG with criteria). Updates: ``linear_fade``, and ``rule_update``
with the rules of each method. ATO: ``learnt_mask`` with a ``controller`` (DDPTraining: with ``trained_latents``), and
``projection``.

Imports core, trace, per_unit, criteria, surgery, selection and masks.
"""

from niwaki.methods import angle_safe as angle_safe
from niwaki.methods.adahspg import AdaHSPG as AdaHSPG
from niwaki.methods.ato import ATO as ATO
from niwaki.methods.cric import CRIC as CRIC
from niwaki.methods.ddp import DDPTraining as DDPTraining
from niwaki.methods.dhspg import DHSPG as DHSPG
from niwaki.methods.gap import GaP as GaP
from niwaki.methods.greg import GReg1 as GReg1
from niwaki.methods.greg import GReg2 as GReg2
from niwaki.methods.h2spg import H2SPG as H2SPG
from niwaki.methods.hesso import HESSO as HESSO
from niwaki.methods.hspg import HSPG as HSPG
from niwaki.methods.linear_fade import LinearFade as LinearFade
from niwaki.methods.lora.atp import ATP as ATP
from niwaki.methods.lora.lhspg import LHSPG as LHSPG
from niwaki.methods.lora.recovery import recovery_shares as recovery_shares
from niwaki.methods.method import Method as Method
from niwaki.methods.schedule import Schedule as Schedule
from niwaki.methods.shrinking import ShrinkPolicy as ShrinkPolicy
from niwaki.methods.status import Progress as Progress
from niwaki.methods.weightmom import WeightMom as WeightMom
