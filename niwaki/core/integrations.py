"""Integrations: what a package for the models of one library adds to searching and cutting. The core names none of
them.

Such a package registers an `Integration` when it is imported, and `niwaki.core.announced` sees to that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from niwaki.core.announced import import_announced
from niwaki.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Multiple:
    """A condition of a model's configuration on its sizes: the length of dimension ``dim`` of the parameter ``tensor``
    is a multiple of the length of dimension ``of_dim`` of ``of``, divided by ``per``. ``what`` says so in words."""

    tensor: str
    dim: int
    of: str
    of_dim: int
    per: int
    what: str


class Integration(Protocol):
    """Knowledge of the models of one library."""

    def multiples(self, model: torch.nn.Module) -> Sequence[Multiple]:
        """The conditions of the configurations of ``model`` on its sizes; empty for unknown models."""

    def looked_after(self, model: torch.nn.Module) -> Sequence[object]:
        """Objects on the modules of ``model`` whose numbers `after_cut` updates, or reports as not updated."""

    def with_fewer_layers(
        self, model: torch.nn.Module, deleted: Mapping[str, tuple[int, Sequence[int]]]
    ) -> AbstractContextManager[None]:
        """A block in which the configurations of ``model`` say what `after_cut` would make them say, now that entries
        of its lists of modules have been deleted: by path how many there were, and the numbers of those. They are what
        they were after it. It must not raise."""

    def after_cut(self, small: torch.nn.Module, plan: Plan) -> None:
        """Update the configurations of ``small``, which has just been cut by ``plan``. It still says of itself what had
        been done to it before. It must not raise, change tensors, or change objects that others may hold."""


_REGISTERED: list[Integration] = []


def register(integration: Integration) -> None:
    """Ask ``integration`` about every model from now on."""
    _REGISTERED.append(integration)


def registered() -> Iterator[Integration]:
    """All integrations."""
    import_announced()
    return iter(tuple(_REGISTERED))
