"""What is computed for every unit while a network trains, each in two ways: a plain loop, and a fast path.

``index``: which rows of which parameters are a unit. ``layers``: the same, taken apart by module. ``sums``, ``peers``:
what criteria read of it. ``protocol``: what methods do to units; ``plain`` is the specification, ``fast`` gives the
same with a handful of operations per parameter, in ``blocks`` that fit a cache. ``direction``: which way the optimizer
moved; ``known_directions``: optimizers that keep it in their state. ``unit_gates``: factors of units that carry
gradients; ``gates``: of terms that no parameters make; ``trained_gates``: these around the steps of an optimizer, with
the gradients of ``backward_passes``, and ``gated_units``: as weights of units. Imports core.
"""

from niwaki.per_unit import known_directions as known_directions
