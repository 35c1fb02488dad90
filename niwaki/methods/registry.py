"""The table of all methods by name, for those who let others choose one: the command line, benchmarks, tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError, UnknownName, nearest
from niwaki.methods.method import Method
from niwaki.methods.schedule import Schedule
from niwaki.selection.budget import Budget


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """What a training loop has to offer to a method. ``loss()``: the loss of the batch at hand, computed anew.
    ``shrink``: whether the network may get smaller on the way. ``erase``: whether whole structures leave, not units;
    ``narrow``: whether units leave beside them. ``held_out``, for methods that ask for them: batches that are not
    trained on, which can be iterated again and again, and ``loss_fn(model, batch)``, their loss."""

    space: SearchSpace
    optimizer: Optimizer
    budget: Budget
    schedule: Schedule
    loss: Callable[[], Tensor]
    shrink: bool = False
    erase: bool = False
    narrow: bool = False
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None
    held_out: Iterable[Any] | None = None

    @property
    def remove(self) -> Literal["units", "structures", "both"]:
        """What leaves, in the word of the methods."""
        if not self.erase:
            return "units"
        return "both" if self.narrow else "structures"


Build = Callable[[Training], Method]
_REGISTRY: dict[str, Build] = {}
_ERASING: dict[str, bool] = {}  # whether units can leave, by the names of methods that can erase structures
_HOLDING_OUT: set[str] = set()


def register(name: str, build: Build, *, erases: bool = False, narrows: bool = True, holds_out: bool = False) -> None:
    """Let ``build``, which attaches a method with its default arguments, be known under ``name``: one that can erase
    structures, make layers narrower, or both; ``holds_out``: that learns from batches held out of the training."""
    if name in _REGISTRY:
        raise MethodError(f"There is already a method {name!r}. Give the new one another name.")
    _REGISTRY[name] = build
    if erases:
        _ERASING[name] = narrows
    if holds_out:
        _HOLDING_OUT.add(name)


def erasing() -> dict[str, bool]:
    """The methods that can erase structures, and whether they can make layers narrower instead.

    >>> erasing()
    {'hesso-cric': True, 'h2spg': False, 'hesso': True}
    """
    return dict(_ERASING)


def holding_out() -> frozenset[str]:
    """The methods that learn from batches that are held out of the training.

    >>> sorted(holding_out())
    ['ato']
    """
    return frozenset(_HOLDING_OUT)


def methods() -> dict[str, Build]:
    """All registered methods by name: what attaches each to a `Training` with its default arguments.

    >>> sorted(methods())[:2]
    ['adahspg', 'ato']
    """
    return dict(_REGISTRY)


def attach(name: str, training: Training) -> Method:
    """The method called ``name``, attached to the optimizer of ``training`` with its default arguments.

    Raises:
        UnknownName: there is none; the message lists those there are.
        NiwakiError: the method does not fit the training.
    """
    if training.narrow and not training.erase:
        raise MethodError(
            "narrow=True (--narrow) makes layers narrower beside erasing structures. Without erase=True (--erase) "
            "methods make layers narrower anyway."
        )
    if name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise UnknownName(f"There is no method {name!r}.{nearest(name, _REGISTRY)} Registered are: {known}.")
    if training.erase and name not in _ERASING:
        raise MethodError(
            f"{name} makes layers narrower, and erases no structures. Those that do are {', '.join(sorted(_ERASING))}."
        )
    if not training.erase and not _ERASING.get(name, True):
        raise MethodError(f"{name} erases whole structures. Ask for that (erase=True, or --erase on the command line).")
    if name in _HOLDING_OUT and (training.held_out is None or training.loss_fn is None):
        raise MethodError(
            f"{name} learns from batches that are held out of the training, and this training offers none. Give it "
            "held_out=, batches that can be iterated again and again, and loss_fn=, which is called as "
            "loss_fn(model, batch)."
        )
    return _REGISTRY[name](training)
