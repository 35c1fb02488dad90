"""What packages that know the models of one library add to searching and cutting. The core knows none of them by name.

Such a package registers an `Integration` when it is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from niwaki.core.plan import Plan


@dataclass(frozen=True, slots=True)
class Multiple:
    """What the description of a model asks of its sizes: the length of dimension ``dim`` of the parameter ``tensor`` is
    a multiple of the length of dimension ``of_dim`` of ``of``, divided by ``per``. ``what`` says so in words."""

    tensor: str
    dim: int
    of: str
    of_dim: int
    per: int
    what: str


class Integration(Protocol):
    """Knowledge of the models of one library."""

    def multiples(self, model: torch.nn.Module) -> Sequence[Multiple]:
        """What descriptions of ``model`` ask of its sizes; nothing for models that it does not know."""

    def looked_after(self, model: torch.nn.Module) -> Sequence[object]:
        """Objects on the modules of ``model`` whose numbers `after_cut` keeps up to date, or says of that they are
        not."""

    def after_cut(self, small: torch.nn.Module, plan: Plan) -> None:
        """Bring what describes ``small`` up to date, which has just been cut by ``plan``. It raises nothing, leaves
        tensors alone, and changes no object that others may hold."""


_REGISTERED: list[Integration] = []


def register(integration: Integration) -> None:
    """Ask ``integration`` about every model from now on."""
    _REGISTERED.append(integration)


def registered() -> Iterator[Integration]:
    """All integrations."""
    return iter(tuple(_REGISTERED))
