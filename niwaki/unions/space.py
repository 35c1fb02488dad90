"""The search space of ``streams="union"``: each branch of a stream has channels of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn

from niwaki.core.cost import Cost
from niwaki.core.counts import BoolArray
from niwaki.core.describe import counted
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.core.union_streams import UnionStreams
from niwaki.errors import PlanError
from niwaki.unions.gated import GatedUnions
from niwaki.unions.plans import carried, union_plan
from niwaki.unions.writers import Writers


@dataclass(frozen=True, eq=False, repr=False)
class UnionSpace(UnionStreams):
    """What can be removed if streams carry the union of what their branches write.

    ``writers``: the branches with channels of their own; ``writers.space`` is the search space in which all branches of
    a stream have the same channels. The units are those of ``writers.space``, then the channels of each writer. A unit
    of a stream is then what others than writers make of it, such as the stem.

    `niwaki.score`, `niwaki.choose`, `cost` and `plan` follow unions; all else refuses such a space.

    Example:
        >>> import torch, niwaki
        >>> from niwaki.networks.small import ResNet
        >>> net, x = ResNet(10, 1, (8, 8), (8,), 2), torch.randn(1, 1, 8, 8)
        >>> space = niwaki.search_space(net, x, streams="union")
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))
        >>> niwaki.check(net, plan, x).holds
        True
    """

    writers: Writers

    @classmethod
    def of(cls, space: SearchSpace, readers: bool = False) -> UnionSpace:
        """That of ``space``, made with ``erase=True``. With ``readers``, each branch chooses the channels that it
        reads, too, as in DISP-LLM (arXiv 2410.11988): they are units after those of the writers.

        Raises:
            PlanError: no branch of the network can have channels of its own.
        """
        writers = Writers(space, (), {}) if space.erasures is None else Writers.of(space, readers)
        if not writers.writers:
            why = next(
                (f"{name!r}: {why}" for name, why in writers.refused.items()),
                "nothing is added to a stream"
                + ", or the space was made without erase=True" * (space.erasures is None),
            )
            raise PlanError(
                f"No branch of this network can have channels of its own ({why}). Leave out streams='union'."
            )
        return cls(writers)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.writers.space.model

    @property
    def scored_space(self) -> SearchSpace:
        """The space of the same units that `niwaki.score` scores; its costs are not those of unions."""
        return self.writers.scored_space

    @cached_property
    def gated(self) -> GatedUnions:
        """In which masks are learnt: all but what streams carry."""
        return GatedUnions.of(self.writers)

    @property
    def num_units(self) -> int:
        """The number of units, with the channels of all writers and readers."""
        return self.scored_space.num_units

    def cost(self, plan: Plan | None = None) -> Cost:
        """The cost of the model as it is, or as ``plan`` leaves it."""
        return self.writers.space.cost(plan)

    def plan(self, keep: BoolArray, provenance: Mapping[str, Any] | None = None) -> Plan:
        """The plan that keeps the units with ``keep`` [num_units] true.

        A stream keeps each channel that any writer keeps, whatever ``keep`` says of its unit; one that writers alone
        make leaves if none does. A writer whose structure is erased keeps nothing.

        Raises:
            PlanError: a writer would write nothing, or as for `SearchSpace.plan`.
        """
        keep = np.array(keep, dtype=bool)
        if keep.shape != (self.num_units,):
            raise PlanError(f"keep must be a mask of {self.num_units} units, but has the shape {keep.shape}.")
        units, writes = self.writers.split(keep)
        return union_plan(self.writers, carried(self.writers, units, writes), writes, provenance)

    def __str__(self) -> str:
        channels = sum(len(writer.units) for writer in self.writers.writers)
        branches = "branch" if len(self.writers.writers) == 1 else "branches"
        told = f"union streams: {counted(channels, 'channel')} of {len(self.writers.writers)} {branches} of their own"
        others = [f"shared by {name!r}: {why}" for name, why in self.writers.refused.items()]
        return "\n".join([str(self.writers.space), told, *others])

    __repr__ = __str__
