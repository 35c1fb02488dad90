"""Which way an optimizer moves its parameters: x goes to x - lr * d, beside decoupled weight decay.

d is read from the optimizer's state where its class is known here, one family per file (see `Family`), which needs no
copy of anything and is defined at learning rate 0 too. It is the difference of two iterates otherwise, which needs no
table of optimizers. Imports niwaki.core and torch.
"""

from niwaki.methods.direction import adam as adam
from niwaki.methods.direction import sgd as sgd
from niwaki.methods.direction.decay import decay as decay
from niwaki.methods.direction.steps import Directions as Directions
from niwaki.methods.direction.ways import Direction as Direction
from niwaki.methods.direction.ways import joined as joined
