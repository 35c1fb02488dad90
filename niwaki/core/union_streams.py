"""What all layers know of a search space in which every branch of a stream has channels of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niwaki.core.space import SearchSpace


class UnionStreams(ABC):
    """A search space of union streams. It is no `SearchSpace`, whose units leave one by one and add up in costs: a unit
    of a union stream leaves when no branch writes it any more. So what takes a `SearchSpace` refuses it."""

    __slots__ = ()

    @property
    @abstractmethod
    def scored_space(self) -> SearchSpace:
        """The space in which the channels that a branch writes are units of their own, to be scored."""


def why_refused() -> str:
    """The sentence of what takes a `SearchSpace` and is given one of union streams."""
    return (
        "space is one of union streams (streams='union'), which niwaki.score, niwaki.choose, space.cost and space.plan "
        "follow, and nothing else. Pass space.writers.space, or make it without streams='union': all branches of a "
        "stream then have the same channels."
    )


def why_scored_alone() -> str:
    """The sentence of what takes a `SearchSpace` and is given one of single channels, which are only scored."""
    return (
        "space is the scored_space of union streams, in which the channels of branches are units that niwaki.score "
        "scores: its costs and its cuts are not those of unions. Choose by these scores with niwaki.choose(space, ...) "
        "of the space made with streams='union', or with niwaki.unions.choose(writers, ...)."
    )
