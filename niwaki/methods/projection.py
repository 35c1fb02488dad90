"""The update of Auto-Train-Once: masked units are projected after each step, and what is left of them fades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, final

import torch
from torch import Tensor

from niwaki.errors import MethodError
from niwaki.methods.checks import check_number
from niwaki.methods.dhspg import DualHalfSpace, usual_penalty
from niwaki.methods.metric_prox import FastProx, MetricProx, PlainProx, UnitLengths
from niwaki.methods.parts import Update
from niwaki.methods.rule_update import RuleSteps, check_rate
from niwaki.methods.stages import Stages
from niwaki.methods.trained_units import TrainedUnits
from niwaki.per_unit.metric import metrics
from niwaki.per_unit.protocol import UnitUpdate

PROX, HALF_SPACE = "prox", "half-space"
Kind = Literal["prox", "half-space"]
_HARDER, _MORE = 4.0, 100.0  # after the freeze: the pace, and a penalty that the user gives (10 -> 1000 as published)
_EPSILON = 0.9


@final
class Projection(Update):
    """The group soft threshold, or the half-space projection.

    Without a ``penalty`` each unit is shortened on every step by the same piece of what it was when it came under the
    mask, such that it would reach zero in the time from the first projection to the freeze, and four times as fast from
    then on: no optimizer holds against that. With one, it is the proximal step of penalty * ||x|| in the metric of the
    optimizer, and of 100 times that from then on.

    Raises:
        MethodError: the penalty is no number, the kind is unknown, or the optimizer has no learning rate.
    """

    def __init__(
        self, units: TrainedUnits, stages: Stages, penalty: float | None, kind: Kind, vectorised: bool
    ) -> None:
        if kind not in (PROX, HALF_SPACE):
            raise MethodError(f"projection={kind!r} is not a projection. Choose 'prox' or 'half-space'.")
        if penalty is not None:
            check_number(
                "penalty", penalty, 0, float("inf"), "it weighs the norms of the masked units against the loss"
            )
            check_rate(units.label, units.holder)
        self._units, self._stages, self._penalty, self._kind = units, stages, penalty, kind
        self._prox: type[FastProx | PlainProx] = FastProx if vectorised else PlainProx
        self._rule = DualHalfSpace(*usual_penalty(units.holder, penalty, None, None), _EPSILON)
        self._rules = RuleSteps(units) if kind == HALF_SPACE else None
        self._pace: Tensor = torch.zeros(units.space.num_units, device=units.device)
        self._of: tuple[object, MetricProx] | None = None  # a set of units, and its projection

    def before(self, step: int, left: float | None) -> None:
        """Keep x for a half-space."""
        if self._rules is not None and left is None:
            self._rules.before(self._rule_of(step))

    def act(self, step: int, left: float | None) -> None:
        """Project, or let fade."""
        units = self._units
        if units.subset is None:
            return
        if left is not None:
            units.subset.apply(UnitUpdate(keep=left))
        elif self._rules is not None:
            self._rules.act(self._rule_of(step))
        else:
            units.at_zero = self._projection().act(
                lambda lengths: self._thresholds(lengths, step > self._stages.freeze)
            )

    def _rule_of(self, step: int) -> DualHalfSpace:
        rule = self._rule
        return rule if step <= self._stages.freeze else replace(rule, most=rule.most * _MORE, amplify=2 * rule.amplify)

    def _projection(self) -> MetricProx:
        """That of the units that are masked now."""
        leaving, units = self._units.leaving, self._units
        if self._of is None or self._of[0] is not leaving:
            self._of = leaving, self._prox(units.space, units.holder, leaving, self._penalty is not None)
            self._pace = torch.where(units.on_device(leaving), self._pace, 0)
        return self._of[1]

    def _thresholds(self, lengths: UnitLengths, frozen: bool) -> Tensor:
        """Of each unit; those of units that are not masked are not looked at."""
        if self._penalty is not None:
            known = type(self._units.holder) in metrics()
            scale = torch.ones_like(lengths.norm) if known else lengths.entries.sqrt()
            return scale * self._penalty * (_MORE if frozen else 1.0)
        steps = max(1, self._stages.freeze - self._stages.project)
        pace = self._pace.to(lengths.norm)
        self._pace = torch.where(pace > 0, pace, lengths.norm / steps)
        return self._pace * (_HARDER if frozen else 1.0)

    def phase(self, step: int) -> str:
        """In one word."""
        return "fading" if step > self._stages.fade else "projecting"

    def settings(self) -> dict[str, Any]:
        """The kind and the penalty."""
        return {"projection": self._kind, "penalty": self._penalty}

    def state(self) -> dict[str, Any]:
        """By how much each unit is shortened on a step."""
        return {"pace": self._pace.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._pace = state["pace"].to(self._units.device).clone()
        self._of = None

    def check_state(self, state: Mapping[str, Any]) -> None:
        """One number per unit."""
        if tuple(state["pace"].shape) != (self._units.space.num_units,):
            raise ValueError("its pace is not one number per unit")
