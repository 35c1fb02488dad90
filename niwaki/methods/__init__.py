"""One method per file, attached to any torch optimizer. Imports niwaki.core, niwaki.criteria and niwaki.budget."""

from niwaki.methods import angle_safe as angle_safe
from niwaki.methods.adahspg import AdaHSPG as AdaHSPG
from niwaki.methods.attach import Method as Method
from niwaki.methods.cric import CRIC as CRIC
from niwaki.methods.dhspg import DHSPG as DHSPG
from niwaki.methods.hesso import HESSO as HESSO
from niwaki.methods.hspg import HSPG as HSPG
from niwaki.methods.lhspg import LHSPG as LHSPG
from niwaki.methods.progress import Progress as Progress
from niwaki.methods.recovery import recovery_shares as recovery_shares
from niwaki.methods.schedule import Schedule as Schedule
from niwaki.methods.shrinking import Shrinking as Shrinking
