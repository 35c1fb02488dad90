"""Blocks: ids that were handed out together and that, as a rule, are tied or pinned together.

Most equations tie one whole dimension to another. Solved between blocks first, they leave few positions to solve for:
a block stands for all that are tied to it, and a pinned block needs one id for all its positions.
"""

from __future__ import annotations

from niwaki.core.counts import IntArray
from niwaki.solve.facts import Facts


class Blocks:
    """Finds the block that an array of ids is."""

    def __init__(self, facts: Facts) -> None:
        self.all = [block for block in facts.blocks if len(block)]
        self._by_memory = {id(block): number for number, block in enumerate(self.all)}
        self._by_first = {int(block[0]): number for number, block in enumerate(self.all)}

    def number(self, ids: IntArray) -> int | None:
        """The number of the block whose ids, in their order, are ``ids`` [n] or [n, 1]; None if there is none."""
        if not len(ids) or ids.size != len(ids):
            return None
        number = self._by_memory.get(id(ids.base))
        if number is not None:
            return number if ids.size == len(self.all[number]) and ids.flags.c_contiguous else None
        number = self._by_first.get(int(ids.flat[0]))
        if number is None or len(self.all[number]) != ids.size:
            return None
        return number if bool((ids.reshape(-1) == self.all[number]).all()) else None
