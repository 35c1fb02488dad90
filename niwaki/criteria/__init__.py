"""One saliency per file. A new criterion is one file here and one line below. Imports niwaki.core only."""

from niwaki.criteria import activation as activation
from niwaki.criteria import average_magnitude as average_magnitude
from niwaki.criteria import batchnorm_scale as batchnorm_scale
from niwaki.criteria import cosine as cosine
from niwaki.criteria import energy as energy
from niwaki.criteria import fisher as fisher
from niwaki.criteria import geometric_median as geometric_median
from niwaki.criteria import hessian as hessian
from niwaki.criteria import lamp as lamp
from niwaki.criteria import magnitude as magnitude
from niwaki.criteria import magnitude_l1 as magnitude_l1
from niwaki.criteria import random as random
from niwaki.criteria import taylor1 as taylor1
from niwaki.criteria import taylor2 as taylor2
from niwaki.criteria.normalise import normalise as normalise
from niwaki.criteria.registry import Criterion as Criterion
from niwaki.criteria.registry import criteria as criteria
from niwaki.criteria.registry import criterion as criterion
from niwaki.criteria.score import Scores as Scores
from niwaki.criteria.score import score as score
