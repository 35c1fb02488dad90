"""Choose the units to keep, from saliencies and limits on the cost. Imports core, criteria and solve."""

from niwaki.selection.greedy import next_step as next_step
from niwaki.selection.greedy import select as select
from niwaki.selection.levels import leaving as leaving
from niwaki.selection.objective import costs as costs
from niwaki.selection.objective import mixed as mixed
from niwaki.selection.objective import prices as prices
from niwaki.selection.removal import BOTH as BOTH
from niwaki.selection.removal import STRUCTURES as STRUCTURES
from niwaki.selection.removal import UNITS as UNITS
from niwaki.selection.removal import Removal as Removal
from niwaki.selection.removal import removal_named as removal_named
from niwaki.selection.request import SelectionRequest as SelectionRequest
from niwaki.selection.steps import Widths as Widths
from niwaki.selection.structures import check_erased as check_erased
from niwaki.selection.structures import check_some as check_some
from niwaki.selection.structures import free_note as free_note
from niwaki.selection.structures import how_many_erased as how_many_erased
from niwaki.solve.uniform import uniform as uniform
