"""One method per file, attached to any torch optimizer. Imports niwaki.core, niwaki.criteria and niwaki.budget."""

from niwaki.methods.attach import Method as Method
from niwaki.methods.hesso import HESSO as HESSO
from niwaki.methods.hesso import Progress as Progress
from niwaki.methods.schedule import Schedule as Schedule
