"""From saliencies and limits to the units that stay. Imports niwaki.core and niwaki.criteria."""

from niwaki.selection.levels import Steps as Steps
from niwaki.selection.pricing import costs as costs
from niwaki.selection.pricing import prices as prices
from niwaki.selection.select import select as select
