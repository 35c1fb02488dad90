"""Residual streams that carry the union of what their branches write: each branch keeps channels of its own.

Imports core, trace, criteria, erasing and selection.
"""

from niwaki.unions.plans import choose, hap, union_plan
from niwaki.unions.space import UnionSpace
from niwaki.unions.writers import Writer, Writers

__all__ = ["UnionSpace", "Writer", "Writers", "choose", "hap", "union_plan"]
