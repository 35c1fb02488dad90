"""Where a method stands, and the warnings that a plan made too early needs: not at the end, or not at zero yet."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

from niwaki.core.edits.zeroed import zeroed_by_method
from niwaki.core.names import named_parameters
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.surgery.nonzero import Nonzero, nonzero


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a method stands. ``phase``: what happens on the next step, in one word: "waiting" and "done" mean the same
    for all methods. ``macs``, ``params``: the share that is left once all marked units are gone."""

    step: int
    phase: str
    period: int
    periods: int
    units: int
    marked: int
    zero: int
    macs: float
    params: float


def share(measure: str, left: Mapping[str, float], dense: Mapping[str, float]) -> float:
    """How much of ``measure`` is left; all of it where there never was any, as of MACs in a network of look-ups."""
    return left[measure] / dense[measure] if dense[measure] else 1.0


def warn_of(label: str, not_ended: str | None, space: SearchSpace, zero: BoolArray) -> None:
    """Warn the caller of a method's ``plan``, which removes units that must be ``zero`` [num_units] in the model."""
    for caveat in (not_ended, not_zero(label, space, zero)):
        if caveat is not None:
            warnings.warn(caveat, stacklevel=3)


def not_ended(label: str, optimizer: Optimizer, step: int, until: int, left: str) -> str:
    """Why a plan that is made after ``step`` steps of ``until`` does not do what was asked for; ``left``: what is
    missing. No number in it changes from step to step, so that a loop that looks at plans is told once."""
    if not step:
        return (
            f"{label} has seen no step of its {type(optimizer).__qualname__}, so this plan removes nothing. It follows "
            "the calls of step() of the very optimizer it was built with: build it with the one that your loop steps."
        )
    return (
        f"{label} has not reached the end of its schedule, step {until}, so this plan {left}. print(method) shows "
        f"where it is. Continue training until step {until}, or build the method with a schedule that ends earlier. "
        "Steps that a gradient scaler skips do not count: let the schedule end some steps before the training does."
    )


def not_zero(label: str, space: SearchSpace, zero: BoolArray) -> str | None:
    """What is wrong if units that a method has set to ``zero`` [num_units] hold something; None if all is well."""
    found = remainder(space, zero)
    if found is None:
        return None
    return (
        f"{len(found.units)} of the {int(zero.sum())} units that {label} has set to zero are not zero in the model: "
        f"{found}. Their weights were written after the step of the optimizer, by a wrapper of it (Lookahead), by "
        "averages copied into the model, by a checkpoint loaded without the optimizer (load_best_model_at_end), or by "
        "an optimizer that the method is not attached to. The cut network computes what this one would with zeros "
        "there. To have them, build the method with the outermost optimizer, or take one more step with its own; "
        "docs/ema_and_checkpoints.md tells which checkpoints and averages can be cut."
    )


def remainder(space: SearchSpace, zero: BoolArray) -> Nonzero | None:
    """What is not zero of the units that a method has set to ``zero`` [num_units] in the model of ``space``."""
    return nonzero(dict(named_parameters(space.model)), zeroed_by_method(space, zero))
