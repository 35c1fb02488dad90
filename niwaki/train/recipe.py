"""The settings of a run: plain values that a checkpoint can hold and a resumed run must repeat."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import niwaki
from niwaki.core.describe import counted
from niwaki.errors import RunError

NO_METHOD = "none"
LEARNING_RATES: Mapping[str, float] = {"sgd": 0.02, "adam": 0.001, "adamw": 0.001}  # the usual peak of each optimizer


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings of a training run.

    ``keep_macs`` and ``keep_params`` are fractions to keep in (0, 1] or absolute numbers above 1. Pruning begins after
    the fraction ``prune_start`` of all optimizer steps and is complete at ``prune_until``; in the rest of the run the
    network recovers. ``width`` multiplies the widths of a built-in network. ``shrink``: units that have reached zero
    are removed during the training, which makes the rest of the run cheaper. ``erase``: whole structures leave the
    network, such as branches and blocks, instead of units; with ``narrow`` units leave beside them, whichever is worth
    less for what it costs. ``lr``: the peak learning rate; None is that of the ``optimizer`` in `LEARNING_RATES`.
    ``weights``: where the training starts, as `niwaki.train.weights.with_weights` reads them. ``image_size``: ``"64"``
    or ``"64x96"``, height by width, to which all images are scaled and cropped. Where there are fewer optimizer steps
    than ``periods``, there are as many periods as steps.
    """

    model: str = "resnet"
    data: str = "digits"
    method: str = "hesso"
    keep_macs: float | None = 0.4
    keep_params: float | None = None
    keep_units: float | None = None
    epochs: int = 40
    batch_size: int = 64
    lr: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    shift: int = 1
    prune_start: float = 0.1
    prune_until: float = 0.35
    periods: int = 10
    width: float = 1.0
    shrink: bool = False
    erase: bool = False
    narrow: bool = False
    optimizer: str = "sgd"
    weights: str | None = None
    image_size: str | None = None

    def __post_init__(self) -> None:
        check_weights(self.weights)
        if self.method not in method_names():
            raise RunError(f"There is no method {self.method!r}. Choose {choices()}.")
        for name in ("epochs", "batch_size", "periods"):
            if getattr(self, name) < 1:
                raise RunError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        if not 0 <= self.seed < 2**32:  # the range of numpy's generators
            raise RunError(f"seed is {self.seed}, but must be a whole number from 0 to {2**32 - 1}.")
        if self.batch_size == 1:
            raise RunError("batch_size is 1, but BatchNorm cannot train on single images. Use at least 2.")
        if self.optimizer not in LEARNING_RATES:
            raise RunError(f"There is no optimizer {self.optimizer!r}. Choose {' or '.join(LEARNING_RATES)}.")
        self.size()
        for name in ("peak_rate", "width"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise RunError(
                    f"{name.replace('peak_rate', 'lr')} is {getattr(self, name)}, but must be a finite number above 0."
                )
        if not 0 <= self.prune_start < self.prune_until <= 1:
            raise RunError(
                f"Pruning from the fraction {self.prune_start} of all steps until {self.prune_until} is not an "
                "interval in 0 to 1. Use for example 0.1 and 0.35."
            )
        if self.method != NO_METHOD and self.keep_macs is self.keep_params is self.keep_units is None:
            raise RunError(f"The method {self.method!r} needs to know what to keep: give keep_macs or keep_params.")

    def budget(self) -> niwaki.Budget:
        """The budget that the cut network meets."""
        return niwaki.Budget(
            macs=_limit(self.keep_macs), params=_limit(self.keep_params), units=_limit(self.keep_units)
        )

    def schedule(self, steps: int) -> niwaki.Schedule:
        """The schedule of the method in a run of ``steps`` optimizer steps.

        Raises:
            RunError: the run is too short for a period of one step.
        """
        start = max(1, round(self.prune_start * steps))
        until = max(start + 1, round(self.prune_until * steps))
        if until > steps:
            raise RunError(
                f"{counted(steps, 'optimizer step')} cannot prune a network: units leave after the first of at least "
                "two. Train for more epochs, or with a smaller batch size."
            )
        return niwaki.Schedule(start=start, until=until, periods=min(self.periods, until - start))

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of the run."""
        return LEARNING_RATES[self.optimizer] if self.lr is None else self.lr

    def size(self) -> tuple[int, int] | None:
        """Height and width that images are scaled to; None leaves them as they are.

        >>> Recipe(image_size="64").size(), Recipe(image_size="64x96").size()
        ((64, 64), (64, 96))

        Raises:
            RunError: ``image_size`` is no size.
        """
        return size_of(self.image_size)

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of optimizer step ``step``: linear warm-up over a twentieth of the run, then a cosine to zero."""
        warm = max(1, steps // 20)
        if step < warm:
            return self.peak_rate * (step + 1) / warm
        return self.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; ``Recipe(**values)`` reads them."""
        return dataclasses.asdict(self)

    def differences(self, others: Mapping[str, Any]) -> list[str]:
        """The names in ``others`` whose values are not this recipe's."""
        mine = self.to_dict()
        return sorted(name for name, value in others.items() if mine[name] != value)


def method_names() -> tuple[str, ...]:
    """The names of all methods, and that of none, which trains the dense network."""
    from niwaki.methods.registry import methods  # here, since the command line shows defaults without torch

    return (*sorted(methods()), NO_METHOD)


def choices() -> str:
    """The names of all methods, as a sentence lists them."""
    *names, none = method_names()
    return f"{', '.join(names)} or {none}"


def size_of(image_size: str | None) -> tuple[int, int] | None:
    """Height and width from ``"64"`` or ``"64x96"``; None from None.

    Raises:
        RunError: ``image_size`` is no size.
    """
    if image_size is None:
        return None
    parts = image_size.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise RunError(f"image_size is {image_size!r}; write 64, or 64x96 for height and width, in pixels.")
    return int(parts[0]), int(parts[-1])


def check_weights(source: str | None) -> None:
    """Raise `RunError` for an empty name: Python reads it as the current directory, and most likely a variable was
    unset."""
    if source is not None and not source.strip():
        raise RunError("--weights is empty. Name a file of a state dictionary, or a directory that niwaki wrote.")


def _limit(value: float | None) -> float | int | None:
    """A fraction unchanged, an amount as a whole number."""
    return int(value) if value is not None and math.isfinite(value) and value > 1 else value
